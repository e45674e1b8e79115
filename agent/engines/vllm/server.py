"""An engine behind HTTP: vLLM servers, for training and evaluation.

A server for training is started with the `FLAGS` (weights are read from this machine's memory, so it runs on this
machine). It is asked over vLLM's own protocol, which tells which weights sampled which token; any other server over
OpenAI's `/v1/completions`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from aiohttp import ClientSession

from solostream.agent.engine import EngineError, Generation, Sampling, Weights, check_prompt
from solostream.agent.engines.api_key import HINT
from solostream.agent.engines.http import RETRIES, ask, open_client, post
from solostream.agent.engines.pretrained import load_tokenizer, tokenizer_of, vocabulary_hash
from solostream.agent.engines.weight_file import check, stored_shapes, weight_file
from solostream.errors import UserError

FLAGS = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs"
    " --worker-extension-cls solostream.agent.engines.vllm.worker.Reload"
)
START = f"a vLLM server for training is started as {FLAGS}"
TOKENS, COMPLETIONS = "/inference/v1/generate", "/v1/completions"
PROBE = "Zwölf Boxkämpfer jagen 123456789 naïve quiz-wizards\n\t```python\nprint(x ** 2)\n```\n数"


class ServerEngine:
    """An `Engine` over one or several replicas of a vLLM server; make one with `await ServerEngine.connect(urls)`.

    An episode stays with the replica that has its prefix cached. A replica that keeps failing is left out, and its
    episodes go on at another; EngineError once none is left. So is one that was started again: its tokens carry a
    version that it was not given here.
    """

    def __init__(
        self,
        client: ClientSession,
        urls: Sequence[str],
        model: str,
        tokenizer: Any,
        max_len: int,
        version: int,
        shapes: dict[str, tuple[int, ...]],
        path: str,
    ) -> None:
        """shapes: of the served weights; empty when they are not on this machine. path: `TOKENS` or `COMPLETIONS`."""
        self.version = version
        self.tokenizer = tokenizer
        self.max_len = max_len
        self.alive = list(urls)
        self._client, self._model = client, model
        self._shapes, self._path = shapes, path
        self._homes: dict[str, str] = {}
        self._turn = itertools.count()
        self._dtype: str | None = None  # of the weights that sample there, once it is known
        self._given: dict[str, int] = {}  # what the replicas call the versions that they were given here
        self._syncing = asyncio.Lock()

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
        api_key_env: str | None = None,
    ) -> ServerEngine:
        """Ask every server what it serves. `tokenizer`: where the served model's files are not on this machine.
        `api_key_env`: the environment variable with the servers' key, where it is not the usual one.

        Raises UserError for a server that is down or has no model, for replicas that differ, and for a tokenizer that
        is not the server's.
        """
        urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        client = open_client(connections, timeout_s, api_key_env)
        try:
            cards = [await _model_card(client, url) for url in urls]
            if len({card["id"] for card in cards}) != 1:
                raise UserError(f"the servers serve different models: {', '.join(card['id'] for card in cards)}")
            root = cards[0].get("root") or cards[0]["id"]
            shapes = stored_shapes(root)
            own = tokenizer_of(root, tokenizer) if shapes else load_tokenizer(tokenizer or root)
            for url in urls:
                await _same_tokenizer(client, url, cards[0]["id"], own)
            path = TOKENS if all([await _speaks_tokens(client, url) for url in urls]) else COMPLETIONS
        except BaseException:
            await client.close()
            raise
        context = min(int(card.get("max_model_len") or 32_768) for card in cards)
        return cls(client, urls, cards[0]["id"], own, min(max_len or context, context), version, shapes, path)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """See `Engine.generate`. Raises UserError for what the server refuses, EngineError when no server answers."""
        check_prompt(prompt_ids, self.max_len, "the server's context", "the server's --max-model-len")
        settings: dict[str, Any] = {
            "max_tokens": min(sampling.max_tokens, self.max_len - len(prompt_ids)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,  # these two would else be what the model's generation_config.json says
            "repetition_penalty": 1.0,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "stop_token_ids": list(sampling.stop_token_ids),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logprobs": 0,
        }
        if self._path == TOKENS:
            body: dict[str, Any] = {"model": self._model, "token_ids": list(prompt_ids), "sampling_params": settings}
        else:
            body = {"model": self._model, "prompt": list(prompt_ids), **settings, "return_token_ids": True}
        return await self._ask(sampling.key, body, sampling.parent)

    async def _ask(self, key: str | None, body: dict[str, Any], parent: str | None = None) -> Generation:
        """The answer of the episode's own replica, or of another where that one fails."""
        trouble = "no replica left"
        synced, start = bool(self._given), self.version
        while self.alive:
            url = self._home(key, parent)
            for attempt in range(RETRIES + 1):
                try:
                    choice = (await post(self._client, f"{url}{self._path}", body))["choices"][0]
                except EngineError as error:
                    trouble = str(error)
                    if attempt < RETRIES:
                        await asyncio.sleep(0.25 * 2**attempt)
                    continue
                labels = {span["version"] for span in choice.get("weight_versions") or ()}
                if synced and labels - self._given.keys():
                    trouble = f"{url} was started again and has not the weights of version {self.version}"
                elif url in self.alive:  # else it failed to take weights, and nobody knows which these tokens are of
                    return _generation(choice, self._given, start)
                break
            self._leave_out(url)
        raise EngineError(f"no server answers: {trouble}; start it again")

    def _leave_out(self, url: str) -> None:
        if url in self.alive:
            self.alive.remove(url)

    def _home(self, key: str | None, parent: str | None = None) -> str:
        home = self._homes.get(key or "") or self._homes.get(parent or "")  # a branch: where its beginning is cached
        if home not in self.alive:
            home = self.alive[next(self._turn) % len(self.alive)]
        if key is not None and home is not None:
            self._homes[key] = home
        assert home is not None
        return home

    async def release(self, key: str) -> None:
        """Forget which replica the episode was at; the server frees its prefix cache by itself."""
        self._homes.pop(key, None)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """See `Engine.load_weights`. Raises UserError when a server was not started for training or the weights do not
        fit, EngineError when no server takes them; a replica that fails to is left out.
        """
        check(weights, self._shapes)
        if self._path != TOKENS:
            raise UserError(f"the server does not tell which weights sampled a token; for training start it as {FLAGS}")
        async with self._syncing:
            urls = tuple(self.alive)
            if not self._given:
                for url in urls:
                    await self._refuse_raw_logprobs(url)
                found = {await self._dtype_at(url) for url in urls}
                self._dtype = found.pop() if len(found) == 1 else None
            self._given[str(version)] = version
            with weight_file(weights, self._dtype) as path:
                switches = [self._switch(url, path, version) for url in urls]
                outcomes = await asyncio.gather(*switches, return_exceptions=True)
            trouble = "none is left"
            for url, outcome in zip(urls, outcomes, strict=True):
                if isinstance(outcome, EngineError):
                    self._leave_out(url)
                    trouble = str(outcome)
                elif outcome is not None:
                    raise outcome
            if not self.alive:
                raise EngineError(f"no server took the weights: {trouble}; start it again as {FLAGS}")
            self.version = version

    async def _switch(self, url: str, path: str, version: int) -> None:
        """Between two steps: the requests in flight go on under the new weights, their cache computed anew."""
        tell = partial(post, self._client, missing=START)
        await tell(f"{url}/pause?mode=keep", {})
        try:
            await tell(f"{url}/collective_rpc", {"method": "load_from", "args": [path]})
            reset = await tell(f"{url}/reset_prefix_cache?reset_running_requests=true", {})
            if not reset["success"]:
                raise EngineError(f"{url} kept what it had cached under the old weights")
            await tell(f"{url}/update_weight_version", {"new_version": str(version)})
        except BaseException:
            self._leave_out(url)  # before its requests go on, under weights of no version
            raise
        finally:
            await tell(f"{url}/resume", {})

    async def _dtype_at(self, url: str) -> str:
        told = await post(self._client, f"{url}/collective_rpc", {"method": "dtype"}, missing=START)
        return str(told["results"][0])

    async def _refuse_raw_logprobs(self, url: str) -> None:
        """Of the only token that top-k = 1 leaves the logprob is 0, unless the server reports those before top-k."""
        probe = {"max_tokens": 4, "temperature": 1.0, "top_k": 1, "logprobs": 0, "ignore_eos": True}
        body = {"model": self._model, "token_ids": self.tokenizer.encode(PROBE)[:4], "sampling_params": probe}
        told = _generation((await post(self._client, f"{url}{TOKENS}", body))["choices"][0], {}, 0).logprobs
        if min(told) < -1e-3:
            raise UserError(f"{url} tells logprobs of another distribution than it samples from; start it as {FLAGS}")

    async def close(self) -> None:
        """Give the connections back; the servers go on."""
        await self._client.close()


async def open_servers(
    model: str = "",
    *,
    tokenizer: Any = None,
    max_len: int | None = None,
    urls: tuple[str, ...] = (),
    api_key_env: str | None = None,
) -> ServerEngine:
    """The engine `server`: replicas at `urls`, else at those that `model` lists, with commas. Raises UserError."""
    addresses = list(urls) or model.split(",")
    check_urls(addresses)
    return await ServerEngine.connect(addresses, tokenizer, max_len=max_len, api_key_env=api_key_env)


def check_urls(urls: Sequence[str]) -> None:
    """Raises UserError where there are none, or one is no address."""
    if not urls:
        raise UserError("engine 'server' has no servers: set engine.server.urls = [\"http://HOST:PORT\"]")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"engine 'server': {url!r} is no address: set engine.server.urls = [\"http://HOST:PORT\"]")


def _generation(choice: dict[str, Any], versions: dict[str, int], start: int) -> Generation:
    """`versions`: by the names that servers have for them; tokens of any other were sampled under `start`."""
    ids, told = choice.get("token_ids"), choice.get("logprobs")
    if ids is None or told is None:
        raise UserError(
            "the server returns no token ids or logprobs, which training needs: use a vLLM server, or evaluate"
            " with chat:URL#MODEL"
        )
    logprobs = told["token_logprobs"] if "token_logprobs" in told else [entry["logprob"] for entry in told["content"]]
    own = [start] * len(ids)
    for span in choice.get("weight_versions") or ():
        own[span["start"] : span["end"]] = [versions.get(span["version"], start)] * (span["end"] - span["start"])
    finish = choice["finish_reason"]
    return Generation(ids, logprobs, own, finish if finish in ("stop", "length") else "abort")


async def _model_card(client: ClientSession, url: str) -> dict[str, Any]:
    """What the server says of its model. Raises UserError."""
    try:
        answer = await ask(client, "GET", f"{url}/v1/models", patience_s=10.0)
    except EngineError as error:
        kind = type(error.__cause__).__name__
        raise UserError(f"no server at {url} ({kind}): start it, or check the address") from None
    if answer.status in (401, 403):
        raise UserError(f"{url} refuses the key ({answer.status}): {answer.reason()}; {HINT}")
    if answer.status >= 300:
        raise UserError(f"{url}/v1/models answered {answer.status}: is it a vLLM server?")
    try:
        card: dict[str, Any] = answer.json()["data"][0]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{url}/v1/models lists no model: is it an OpenAI-compatible server?") from None
    return card


async def _speaks_tokens(client: ClientSession, url: str) -> bool:
    """Whether it has vLLM's own protocol: then it finds fault with an empty request, not with its address."""
    try:
        return (await ask(client, "POST", f"{url}{TOKENS}", {})).status in (400, 422)
    except EngineError as error:
        raise UserError(f"{error}: start the server again") from None


async def _same_tokenizer(client: ClientSession, url: str, model: str, own: Any) -> None:
    """A server does not tell its vocabulary, but it tokenizes: compare on a text with digits, code, other scripts."""
    question = {"model": model, "prompt": PROBE, "add_special_tokens": False}
    try:
        answer = await post(client, f"{url}/tokenize", question)
    except UserError as error:
        raise UserError(f"no vLLM server at {url} ({error}); other servers are evaluated with chat:URL#MODEL") from None
    mine = own.encode(PROBE, add_special_tokens=False)
    if answer.get("tokens") != mine:
        raise UserError(
            f"the tokenizer here (vocabulary {vocabulary_hash(own)[:12]}) is not the one of {model} at {url}: pass the"
            " served model's folder or id as tokenizer"
        )
