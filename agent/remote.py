"""An engine behind HTTP: vLLM servers, for training and evaluation.

A server for training is started so (weights are read from this machine's shared memory, so it runs on this machine):
`VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --worker-extension-cls
agent.vllm_worker.Reload`
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from agent.engine import EngineError, Generation, Sampling, Weights
from agent.pretrained import load_tokenizer, tokenizer_of, vocabulary_hash
from agent.weightfile import check, stored_shapes, weight_file
from sandbox.errors import UserError

RETRIES = 4  # of a request, with 0.25, 0.5, 1 and 2 s between them
PROBE = "Zwölf Boxkämpfer jagen 123456789 naïve quiz-wizards\n\t```python\nprint(x ** 2)\n```\n数"


class ServerEngine:
    """An `Engine` over one or several replicas of a vLLM server; make one with `await ServerEngine.connect(urls)`.

    An episode stays with the replica that has its prefix cached. A replica that keeps failing is left out, and its
    episodes go on at another; EngineError once none is left. So is one that comes back with other weights.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        urls: Sequence[str],
        model: str,
        tokenizer: Any,
        max_len: int,
        version: int,
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        """shapes: of the served weights; empty when they are not on this machine."""
        self.version = version
        self.tokenizer = tokenizer
        self.max_len = max_len
        self.alive = list(urls)
        self._client, self._model = client, model
        self._shapes = shapes
        self._homes: dict[str, str] = {}
        self._turn = itertools.count()
        self._synced = False  # whether the replicas have weights that a restarted one would not have
        self._syncing = asyncio.Lock()
        self._admits, self._idle = asyncio.Event(), asyncio.Event()
        self._admits.set()
        self._flying = 0

    @classmethod
    async def connect(
        cls,
        urls: Sequence[str],
        tokenizer: str | None = None,
        *,
        max_len: int | None = None,
        version: int = 0,
        connections: int = 256,
        timeout_s: float = 600.0,
    ) -> ServerEngine:
        """Ask every server what it serves. `tokenizer`: where the served model's files are not on this machine.

        Raises UserError for a server that is down or has no model, for replicas that differ, and for a tokenizer that
        is not the server's.
        """
        urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("OPENAI_API_KEY")) else {}
        client = httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(timeout_s, connect=5.0), headers=headers)
        try:
            cards = [await _model_card(client, url) for url in urls]
            if len({card["id"] for card in cards}) != 1:
                raise UserError(f"the servers serve different models: {', '.join(card['id'] for card in cards)}")
            root = cards[0].get("root") or cards[0]["id"]
            shapes = stored_shapes(Path(root))  # of files on this machine
            own = tokenizer_of(root, tokenizer) if shapes else load_tokenizer(tokenizer or root)
            for url in urls:
                await _same_tokenizer(client, url, cards[0]["id"], own)
        except BaseException:
            await client.aclose()
            raise
        context = int(cards[0].get("max_model_len") or 32_768)
        return cls(client, urls, cards[0]["id"], own, min(max_len or context, context), version, shapes)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """See `Engine.generate`. Raises UserError for what the server refuses, EngineError when no server answers."""
        if not 0 < len(prompt_ids) < self.max_len:
            raise UserError(
                f"a prompt of {len(prompt_ids)} tokens does not fit the server's context of {self.max_len}: lower the"
                " token budgets of the environment or raise the server's --max-model-len"
            )
        body = {
            "model": self._model,
            "prompt": list(prompt_ids),
            "max_tokens": min(sampling.max_tokens, self.max_len - len(prompt_ids)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "stop_token_ids": list(sampling.stop_token_ids),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
        }
        # A request that arrived while the weights change would be sampled under either version.
        await self._admits.wait()
        version = self.version
        self._flying += 1
        try:
            choice = (await self._ask(sampling.key, body))["choices"][0]
        finally:
            self._flying -= 1
            self._idle.set()
        ids, told = choice.get("token_ids"), choice.get("logprobs")
        if ids is None or told is None:
            raise UserError(
                "the server returns no token ids or logprobs, which training needs: use a vLLM server, or evaluate"
                " with chat:URL#MODEL"
            )
        finish = choice["finish_reason"]
        return Generation(
            ids, told["token_logprobs"], [version] * len(ids), finish if finish in ("stop", "length") else "abort"
        )

    async def _ask(self, key: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of the episode's own replica, or of another where that one fails."""
        trouble = "no replica left"
        while self.alive:
            url = self._home(key)
            for attempt in range(RETRIES + 1):
                try:
                    if attempt and self._synced and await self._lost_weights(url):
                        trouble = f"{url} was started again and has not the weights of version {self.version}"
                        break
                    return await post(self._client, f"{url}/v1/completions", body)
                except EngineError as error:
                    trouble = str(error)
                if attempt < RETRIES:
                    await asyncio.sleep(0.25 * 2**attempt)
            if url in self.alive:
                self.alive.remove(url)
        raise EngineError(f"no server answers: {trouble}; start it again")

    async def _lost_weights(self, url: str) -> bool:
        """Whether a replica that failed a moment ago says that it has other weights than the rest."""
        try:
            answer = await self._client.get(f"{url}/weight_info", timeout=10.0)
            return answer.json()["weight_version"] != str(self.version)
        except (httpx.HTTPError, ValueError, LookupError) as error:
            raise EngineError(f"{url}: {type(error).__name__} {error}") from error

    def _home(self, key: str | None) -> str:
        home = self._homes.get(key or "")
        if home not in self.alive:
            home = self.alive[next(self._turn) % len(self.alive)]
            if key is not None:
                self._homes[key] = home
        assert home is not None
        return home

    async def release(self, key: str) -> None:
        self._homes.pop(key, None)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """See `Engine.load_weights`, but requests in flight end under the old weights: HTTP does not tell tokens apart.

        Raises UserError when a server was not started for training or the weights do not fit, EngineError when it
        fails; a replica that failed is left out, so that all that are left have the same version.
        """
        check(weights, self._shapes)
        async with self._syncing:
            self._admits.clear()
            try:
                while self._flying:
                    self._idle.clear()
                    await self._idle.wait()
                with weight_file(weights) as path:
                    await self._switch_all(path, version)
            finally:
                self._admits.set()

    async def _switch_all(self, path: str, version: int) -> None:
        urls = tuple(self.alive)
        outcomes = await asyncio.gather(*(self._switch(u, path, version) for u in urls), return_exceptions=True)
        failures = [outcome for outcome in outcomes if outcome is not None]
        for failure in failures:
            if not isinstance(failure, EngineError):
                raise failure
        self.alive = [url for url, outcome in zip(urls, outcomes, strict=True) if outcome is None]
        if not self.alive:
            raise EngineError(
                f"no server took the weights: {failures[0] if failures else 'none is left'}; start it again"
            )
        self.version, self._synced = version, True

    async def _switch(self, url: str, path: str, version: int) -> None:
        await post(self._client, f"{url}/pause?mode=wait&clear_cache=true", {})
        try:
            await post(self._client, f"{url}/collective_rpc", {"method": "load_from", "args": [path]})
            await post(self._client, f"{url}/update_weight_version", {"new_version": str(version)})
        finally:
            await post(self._client, f"{url}/resume", {})

    async def close(self) -> None:
        await self._client.aclose()


async def post(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer. Raises UserError when the request is at fault, EngineError when the server is."""
    try:
        answer = await client.post(url, json=body)
    except httpx.HTTPError as error:
        raise EngineError(f"{url}: {type(error).__name__} {error}") from error
    if answer.status_code == 404 and "/v1/" not in url:
        raise UserError(
            f"{url} does not exist: for training start the server with VLLM_SERVER_DEV_MODE=1 and"
            " --worker-extension-cls agent.vllm_worker.Reload"
        )
    if answer.status_code in (400, 401, 403, 404, 422):
        raise UserError(f"{url} refuses the request ({answer.status_code}): {_reason(answer)}")
    if answer.status_code >= 300:
        raise EngineError(f"{url} answered {answer.status_code}: {_reason(answer)}")
    return answer.json() if answer.content else {}


def _reason(answer: httpx.Response) -> str:
    try:
        record = answer.json()
        record = record.get("error", record)
        text = record.get("message", record) if isinstance(record, dict) else record
    except (json.JSONDecodeError, AttributeError):
        text = answer.text
    return " ".join(str(text).split())[:300]


async def _model_card(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """What the server says of its model. Raises UserError."""
    try:
        answer = await client.get(f"{url}/v1/models", timeout=10.0)
        answer.raise_for_status()
        return answer.json()["data"][0]
    except httpx.HTTPStatusError as error:
        raise UserError(f"{url}/v1/models answered {error.response.status_code}: is it a vLLM server?") from None
    except httpx.HTTPError as error:
        raise UserError(f"no server at {url} ({type(error).__name__}): start it, or check the address") from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{url}/v1/models lists no model: is it an OpenAI-compatible server?") from None


async def _same_tokenizer(client: httpx.AsyncClient, url: str, model: str, own: Any) -> None:
    """A server does not tell its vocabulary, but it tokenizes: compare on a text with digits, code, other scripts."""
    question = {"model": model, "prompt": PROBE, "add_special_tokens": False}
    answer = await post(client, f"{url}/tokenize", question)
    mine = own.encode(PROBE, add_special_tokens=False)
    if answer.get("tokens") != mine:
        raise UserError(
            f"the tokenizer here (vocabulary {vocabulary_hash(own)[:12]}) is not the one of {model} at {url}: pass the"
            " served model's folder or id as tokenizer"
        )
