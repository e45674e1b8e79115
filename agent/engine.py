"""`Engine`: a policy that samples tokens. Token ids in, token ids and the sampler's own logprobs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Weights = Mapping[str, Any]  # parameter name (as in the Hugging Face state dict) -> torch.Tensor


class EngineError(RuntimeError):
    """The engine failed (crashed, unreachable, refused): infrastructure, never a reward. Names the remedy."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one turn. `top_k = 0` is off; `temperature = 0` is greedy.

    stop: strings that end the turn, kept in the output (token ids always include them). stop_token_ids: likewise.
    key: names the episode; an engine may keep its KV cache under it and route it to one replica. See `Engine.release`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What was sampled. All three lists have one entry a token; logprobs are of the distribution sampled from."""

    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: Literal["stop", "length", "abort"]


@runtime_checkable
class Engine(Protocol):
    version: int  # of the weights that sample now

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Sample one turn after `prompt_ids` (the whole ledger so far). Raises `EngineError`."""
        ...

    async def release(self, key: str) -> None:
        """The episode `key` is over: forget what is kept for it."""
        ...

    async def load_weights(self, weights: Weights, version: int) -> None:
        """Swap the weights; requests in flight go on under them, their later tokens carry `version`."""
        ...

    async def close(self) -> None:
        """Free the model, its processes and its caches. Idempotent."""
        ...
