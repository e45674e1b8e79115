"""`Engine`: a policy that samples tokens. Token ids in, token ids and the sampler's own logprobs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from solostream.errors import UserError

COLDEST, HOTTEST = 1e-3, 1e3  # temperatures: logits divided by much less or more are no float32 numbers, or all alike
LARGEST_TOP_K = (1 << 31) - 1  # vLLM keeps it in 32 bits
SEEDS = 1 << 63  # how many there are; vLLM keeps one in a signed 64-bit integer
Weights = Mapping[str, Any]  # parameter name (as in the Hugging Face state dict) -> torch.Tensor


class EngineError(RuntimeError):
    """The engine failed (crashed, unreachable, refused): infrastructure, never a reward. Names the remedy."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one turn. `top_k = 0` is off; `temperature = 0` is greedy.

    stop: strings that end the turn, kept in the output (token ids always include them). stop_token_ids: likewise.
    key: names the episode; an engine may keep its KV cache under it and route it to one replica. See `Engine.release`.
    parent: the key of an episode that begins alike: what is cached for it may be used, at the same replica.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    key: str | None = None
    parent: str | None = None


def checked(sampling: Sampling) -> Sampling:
    """What a person asked for, as it is. Raises UserError where no policy can be sampled so."""
    if sampling.max_tokens < 1:
        raise UserError(f"a turn of {sampling.max_tokens} tokens is none: give at least 1 to a turn and to all turns")
    warm = sampling.temperature == 0 or COLDEST <= sampling.temperature <= HOTTEST
    if not warm or not 0 < sampling.top_p <= 1 or not 0 <= sampling.top_k <= LARGEST_TOP_K:
        raise UserError(
            f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, top-k {sampling.top_k}: give a "
            f"temperature of 0 (greedy) or from {COLDEST:g} to {HOTTEST:g}, a top-p above 0 and up to 1 (off), a top-k "
            f"from 0 (off) up to {LARGEST_TOP_K}"
        )
    return sampling


def check_seed(seed: int | None) -> None:
    """Raises UserError for what numpy, torch or vLLM could not begin from."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise UserError(f"a seed of {seed} is none: give a whole number from 0 to {SEEDS - 1}")


def check_prompt(prompt_ids: Sequence[int], max_len: int, context: str = "a context", limit: str = "max_len") -> None:
    """Raises UserError for an empty prompt, and for one behind which no token has room in `max_len` tokens.

    context, limit: what the message calls the context, and what it advises to raise.
    """
    if not 0 < len(prompt_ids) < max_len:
        raise UserError(
            f"a prompt of {len(prompt_ids)} tokens does not fit {context} of {max_len}: lower the token budgets of the"
            f" environment or raise {limit}"
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """What was sampled. All three lists have one entry a token; logprobs are of the distribution sampled from."""

    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: Literal["stop", "length", "abort"]


@runtime_checkable
class Engine(Protocol):
    """What samples tokens for a rollout. One is shared by all episodes; see `solostream check engine`."""

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


@runtime_checkable
class Sleeper(Protocol):
    """An engine that can lend its device's memory to somebody else between two batches."""

    async def sleep(self) -> None:
        """Give up weights and cache, when nothing is in flight; the next `load_weights` wakes it.

        Raises `EngineError`.
        """
        ...


@runtime_checkable
class Receiver(Protocol):
    """An engine to whose processes a learner sends weights directly: join once, then begin, take, end for each version.

    transfer: the backend, or "memory" for none; workers: its processes that join. All raise `EngineError`.
    """

    transfer: str
    workers: int

    async def join_transfer(self, init: dict[str, Any]) -> None:
        """Meet the learner, as `init` says."""
        ...

    async def begin_update(self) -> None:
        """Stop between two steps; what is in flight waits."""
        ...

    async def take_update(self, info: dict[str, Any]) -> None:
        """Take what is sent meanwhile, as `info` says. After a failure `load_weights` makes it whole again."""
        ...

    async def end_update(self, version: int) -> None:
        """Go on, as after `load_weights`."""
        ...
