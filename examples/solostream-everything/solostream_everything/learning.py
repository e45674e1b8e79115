"""What learning is made of: an advantage, a stage, a loss, a sampler, an engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from solostream.agent.engines.hf import open_hf
from solostream.training.advantages.base import Advantage, Advantages, per_token
from solostream.training.batch import Batch
from solostream.training.losses.tokens import Tokens


class Sign:
    """Advantage: +1 for a reward above `bar`, −1 below."""

    def __init__(self, bar: float = 0.5) -> None:
        self.bar = bar

    def __call__(self, batch: Batch) -> Advantages:
        return Advantages(per_token([1.0 if t.reward > self.bar else -1.0 for t in batch], batch))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Faded:
    """Stage: later tokens weigh less, by `rate` a token."""

    def __init__(self, inner: Advantage, rate: float = 0.99) -> None:
        self.inner, self.rate = inner, rate

    def __call__(self, batch: Batch) -> Advantages:
        before = self.inner(batch)
        return Advantages([v * self.rate ** np.arange(len(v)) for v in before.values], before.metrics)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


@dataclass(frozen=True)
class Scaled:
    """Loss: the plain policy gradient, `scale` times."""

    scale: float = 1.0

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        return -self.scale * tokens.log_ratio.exp() * tokens.advantage, {"scaled/tokens": tokens.advantage.abs().sum()}


class Backwards:
    """Sampler, a small curriculum: from the last task to the first, now and then a random one."""

    def __init__(self, task_ids: Sequence[str], seed: int = 0, *, wander: float = 0.1) -> None:
        self.ids, self.wander = list(task_ids), wander
        self.random, self.place = random.Random(seed), 0

    def next(self) -> str:
        if self.random.random() < self.wander:
            return self.random.choice(self.ids)
        self.place += 1
        return self.ids[-(self.place % len(self.ids)) - 1]

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self.random.getstate()
        return {"place": self.place, "random": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]
        version, internal, gauss = state["random"]
        self.random.setstate((version, tuple(internal), gauss))


class Counting:
    """Engine: `hf`, and a count of its requests."""

    requests = 0

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.tokenizer, self.max_len = inner.tokenizer, inner.max_len

    @property
    def version(self) -> int:
        return self._inner.version

    async def generate(self, prompt_ids: Any, sampling: Any) -> Any:
        Counting.requests += 1
        return await self._inner.generate(prompt_ids, sampling)

    async def release(self, key: str) -> None:
        await self._inner.release(key)

    async def load_weights(self, weights: Any, version: int) -> None:
        await self._inner.load_weights(weights, version)

    async def close(self) -> None:
        await self._inner.close()


def counting(
    model: str, tokenizer: Any = None, module: Any = None, slots: int = 256, max_len: int | None = None, seed: int = 0
) -> Counting:
    return Counting(open_hf(model, tokenizer=tokenizer, module=module, slots=slots, max_len=max_len, seed=seed))
