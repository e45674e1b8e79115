"""`ChatEndpoint`: any OpenAI-compatible `chat/completions`, over the official client, for evaluation only.

Messages in, one message out, tools called natively. No token ids and no logprobs come back, so what it plays can be
scored but not trained on. The client's own retries meet lost connections and server errors; a rate limit is waited
for, as long as the server says, without end. What a server can answer besides a reply is told apart here once:

| answer | becomes |
|---|---|
| 429; 503 or 529 with `Retry-After`; an error of that code in a 200 | a wait |
| 401, 403, 404, a used-up quota | `UserError` |
| the conversation does not fit the model's context | `ContextOverflow`: this episode is at its token limit |
| any other 4xx | `Refused`: this request's fault, or that of all of them |
| 5xx, no connection, a 200 that is no reply | `EngineError`, after retries |
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import cached_property
from time import time
from typing import Any

import openai

from solostream.agent.chat_reply import ContextOverflow, ErrorReply, OddReply, Parameters, Refused, Reply, read_reply
from solostream.agent.engine import EngineError, Sampling
from solostream.agent.engines.api_key import HINT, api_key
from solostream.agent.engines.scripted import ScriptedEngine
from solostream.agent.tokenization import decode
from solostream.errors import UserError

RETRIES = 5  # of the client, with 0.5, 1, 2, 4 and 8 s between them, and of a 200 that is no reply
ODD_PAUSE_S = 0.5  # before the first of the latter, doubled from one to the next
LONGEST_WAIT_S = 60.0  # between two tries where the server limits the rate and does not say for how long
ANSWER_TIMEOUT_S = 3600.0  # a long chain of thought is silent for minutes
_OVERFLOW = re.compile(
    r"context[ _-]?(?:length|window|size)|maximum (?:model|sequence|input|prompt) length|max_model_len"
    r"|prompt is too long|input is too long|too many (?:input |prompt )?tokens|reduce the length of the"
    r"|(?:input|prompt) tokens? .{0,40}exceed|input token count|tokens \+ .max_new_tokens|range of input length",
    re.IGNORECASE,
)


class ChatEndpoint(ScriptedEngine):
    """From "URL#MODEL"; `key`: the environment variable that holds the key, where it is not the usual one.

    `reply` is its own face. As an `Engine` (for conversations in a terminal) it speaks text, one token a byte.
    waiting: requests that wait for a rate limit now; on_wait is called whenever it changes. answered: replies so far.
    Raises UserError for a spec that is none and for a named variable that is not set.
    """

    def __init__(self, spec: str, *, key: str | None = None) -> None:
        url, _, model = spec.partition("#")
        if not url.startswith(("http://", "https://")) or not model:
            raise UserError(
                f"chat endpoint {spec!r}: write chat:URL#MODEL, for example chat:http://localhost:8000/v1#qwen"
            )
        super().__init__(lambda text: text, certain=False)
        self._model, self._url = model, url.rstrip("/").removesuffix("/chat/completions")
        self._key = api_key(key)
        self._limit = "max_tokens"  # as the server calls it; newer models of OpenAI know only another name
        self.waiting = self.answered = 0
        self.on_wait: Callable[[], None] = lambda: None

    @cached_property
    def _client(self) -> openai.AsyncOpenAI:
        # Whether a rate limit ends is not for a count of retries to say: the client leaves those to us.
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [_leave_rate_limits]})
        return openai.AsyncOpenAI(
            base_url=self._url,
            api_key=self._key or "none",
            max_retries=RETRIES,
            timeout=openai.Timeout(ANSWER_TIMEOUT_S, connect=10.0),
            http_client=http,
        )

    async def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        parameters: Parameters | None = None,
    ) -> Reply:
        """The assistant's next message. messages, tools: as OpenAI's API takes them.

        Raises UserError, ContextOverflow, Refused, EngineError as the module's table says.
        """
        parameters = parameters or Parameters()
        while True:
            try:
                found = await self._patiently(self._body(messages, tools, parameters))
            except ContextOverflow:
                if parameters.max_tokens is None:
                    raise
                parameters = replace(parameters, max_tokens=None)  # perhaps only the room that was asked for
            except Refused as error:
                known = self._limit == "max_completion_tokens" or parameters.max_tokens is None
                if known or "max_completion_tokens" not in str(error):
                    raise
                self._limit = "max_completion_tokens"
            else:
                self.answered += 1
                return found

    def _body(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], parameters: Parameters
    ) -> dict[str, Any]:
        names = ("temperature", "top_p", "seed")
        body = {name: value for name in names if (value := getattr(parameters, name)) is not None}
        if parameters.max_tokens is not None:
            body[self._limit] = parameters.max_tokens
        if tools:
            body["tools"] = list(tools)
        extra = {"top_k": parameters.top_k} if parameters.top_k is not None else {}
        return {"model": self._model, "messages": list(messages), **body, "extra_body": {**extra, **parameters.extra}}

    async def _patiently(self, body: dict[str, Any]) -> Reply:
        """Waits out rate limits; asks again where a 200 was no reply."""
        limited = odd = 0
        while True:
            try:
                return await self._once(body)
            except _Limited as limit:
                delay = limit.delay_s
                if delay is None:
                    delay = min(LONGEST_WAIT_S, 0.5 * 2 ** min(limited, 10)) * random.uniform(0.75, 1.0)
                limited += 1
                await self._wait(delay)
            except OddReply as error:
                odd += 1
                if odd > RETRIES:
                    raise EngineError(f"{self._url}: {error}") from None
                await asyncio.sleep(ODD_PAUSE_S * 2 ** (odd - 1))

    async def _once(self, body: dict[str, Any]) -> Reply:
        try:
            answer = await self._client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            raise self._judged(error.status_code, error.body, error.response.headers) from None
        except openai.APIConnectionError as error:
            why = f"{error} {error.__cause__ or ''}".strip()
            raise EngineError(f"no answer from {self._url} ({why}): is the server running?") from None
        except openai.OpenAIError as error:
            raise EngineError(f"{self._url}: {error}") from None
        try:
            return read_reply(answer.text)
        except ErrorReply as error:
            judged = self._judged(error.status, error.body, {})
            raise (OddReply(str(judged)) if type(judged) is EngineError else judged) from None

    async def _wait(self, delay_s: float) -> None:
        self.waiting += 1
        self.on_wait()
        try:
            await asyncio.sleep(max(delay_s, 0.02))
        finally:
            self.waiting -= 1
            self.on_wait()

    def _judged(self, status: int, body: Any, headers: Mapping[str, str]) -> Exception:
        """What an answer of this status means; see the module's table."""
        code, reason = _code(body), _reason(body)
        said = f"({status}): {reason}"
        if code == "insufficient_quota":
            return UserError(f"{self._url} has no credit left for this key {said}; {HINT}")
        if status == 429 or (status in (503, 529) and "retry-after" in headers):
            return _Limited(_delay_s(headers))
        if code == "context_length_exceeded" or (status in (400, 413, 422) and _OVERFLOW.search(reason)):
            return ContextOverflow(f"{self._url}: the conversation does not fit the context {said}")
        if status in (401, 403):
            return UserError(f"{self._url} refuses the key {said}; {HINT}")
        if status == 404:
            return UserError(f"{self._url} has no model {self._model!r} or no chat/completions {said}")
        if 400 <= status < 500:
            hint = ""
            if "tool" in reason.lower():
                hint = "; start vLLM with --enable-auto-tool-choice --tool-call-parser NAME, or have calls written as" \
                    " text: --env-options '{\"syntax\": \"fence\"}'"  # fmt: skip
            return Refused(f"{self._url} refuses the request {said}{hint}")
        return EngineError(f"{self._url} answered {said}")

    async def _say(self, prompt_ids: Sequence[int], sampling: Sampling) -> str:
        """A turn of text. What is off in `sampling` is not sent, nor is its token limit, which counts bytes here."""
        temperature, top_p = sampling.temperature, sampling.top_p
        parameters = Parameters(
            None if temperature == 1 else temperature, None if top_p == 1 else top_p, sampling.top_k or None
        )
        parameters = replace(parameters, seed=sampling.seed)
        return (await self.reply(_messages(decode(self.tokenizer, list(prompt_ids))), (), parameters)).text

    async def close(self) -> None:
        """Give the client's connections back."""
        await super().close()
        await self._client.close()


class _Limited(Exception):
    def __init__(self, delay_s: float | None) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s


def open_chat(model: str, *, tokenizer: str | None = None, api_key_env: str | None = None) -> ChatEndpoint:
    """The engine `chat`: `model` is "URL#MODEL". Raises UserError, also for a tokenizer."""
    if tokenizer is not None:
        raise UserError("a chat endpoint has tokens of its own and counts them: leave --tokenizer out")
    return ChatEndpoint(model, key=api_key_env)


async def _leave_rate_limits(response: Any) -> None:
    """The client's own word for "do not retry": a server that limits the rate is waited for above."""
    if response.status_code == 429 or (response.status_code in (503, 529) and "retry-after" in response.headers):
        response.headers["x-should-retry"] = "false"


def _delay_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date; None where it says nothing that can be read."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            if (delay := float(headers.get(name, ""))) >= 0:
                return delay * unit
        except ValueError:
            continue
    try:
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time(), 0.0)
    except (TypeError, ValueError):
        return None


def _code(body: Any) -> str:
    return str(body.get("code") or body.get("type") or "") if isinstance(body, Mapping) else ""


def _reason(body: Any) -> str:
    """What the server says is wrong, in one line."""
    if isinstance(body, Mapping):
        body = next((body[name] for name in ("message", "detail", "error") if body.get(name)), body)
    text = body if isinstance(body, str) else json.dumps(body, default=str)
    return " ".join(text.split())[:300]


def _messages(text: str) -> list[dict[str, str]]:
    """The conversation that `byte_tokenizer`'s ChatML shows; the last turn, which is to be spoken, left out."""
    found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", text, re.DOTALL)
    roles = {"tool": "user"}  # endpoints accept a tool's message only after a call in their own format
    messages = [{"role": roles.get(role, role), "content": content} for role, content in found]
    if messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages
