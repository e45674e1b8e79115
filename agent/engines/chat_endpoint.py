"""`ChatEndpoint`: any OpenAI-compatible `chat/completions`, for evaluation only."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from solostream.agent.engine import EngineError, Sampling
from solostream.agent.engines.http import RETRIES, open_client, post
from solostream.agent.engines.scripted import ScriptedEngine
from solostream.agent.tokenization import decode
from solostream.errors import UserError


class ChatEndpoint(ScriptedEngine):
    """An engine over `POST URL/chat/completions`, from "URL#MODEL"; the key is read from OPENAI_API_KEY.

    Text in, text out: no token ids and no logprobs come back, so it can be evaluated but not trained. Temperature,
    top-p, top-k (where it is not off: it is not in OpenAI's protocol), seed and the token limit are handed on.
    Raises UserError.
    """

    def __init__(self, spec: str) -> None:
        url, _, model = spec.partition("#")
        if not url.startswith(("http://", "https://")) or not model:
            raise UserError(
                f"chat endpoint {spec!r}: write chat:URL#MODEL, for example chat:http://localhost:8000/v1#qwen"
            )
        super().__init__(lambda text: text, certain=False)
        self._model, self._address = model, f"{url.rstrip('/')}/chat/completions"
        self._client = open_client(connections=256, timeout_s=600.0)

    async def _say(self, prompt_ids: Sequence[int], sampling: Sampling) -> str:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": _messages(decode(self.tokenizer, list(prompt_ids))),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        body |= {"seed": sampling.seed} if sampling.seed is not None else {}
        body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        for attempt in range(RETRIES):
            try:
                return _content(await post(self._client, self._address, body))
            except EngineError:
                await asyncio.sleep(0.25 * 2**attempt)
        return _content(await post(self._client, self._address, body))

    async def close(self) -> None:
        await super().close()
        await self._client.close()


def _content(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"] or ""


def _messages(text: str) -> list[dict[str, str]]:
    """The conversation that `byte_tokenizer`'s ChatML shows; the last turn, which is to be spoken, left out."""
    found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", text, re.DOTALL)
    roles = {"tool": "user"}  # endpoints accept a tool's message only after a call in their own format
    messages = [{"role": roles.get(role, role), "content": content} for role, content in found]
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages
