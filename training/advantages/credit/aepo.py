"""AEPO's entropy-aware advantage (arXiv 2510.14545; its clip is the loss `aepo`).

    A_t ← A_t·(1 + α·(H_t − mean H)/std H)      over the action tokens of the batch; α = .2 in the authors' code

Where the policy hesitated it learns more: the opposite of EMPG. Departures: H_t is by default −log π of the sampled
token; mean and deviation are of the whole batch (their code: a micro-batch) without what the filters take out; a factor
is never below 0.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.advantages.credit.entropy import Entropies, Source, reader
from solostream.training.batch import Batch, kept_of


class AEPO:
    """alpha: how much one deviation of the entropy counts."""

    def __init__(
        self,
        inner: Advantage,
        *,
        alpha: Annotated[float, Field(ge=0)] = 0.2,
        entropy: Source = "sampled",
        entropies: Entropies | None = None,
    ) -> None:
        self.inner, self.alpha = inner, alpha
        self._read = reader(entropy, entropies)

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, weighed token by token."""
        before = self.inner(batch)
        entropy = self._read(batch)
        used = [h for h, keep in zip(entropy, kept_of(batch), strict=True) if keep]
        pooled = np.concatenate(used) if used else np.zeros(0)
        if not len(pooled):
            return before
        mean, deviation = float(pooled.mean()), float(pooled.std()) or 1.0
        factors = [np.maximum(1 + self.alpha * (h - mean) / deviation, 0.0) for h in entropy]
        values = [v * f for v, f in zip(before.values, factors, strict=True)]
        return Advantages(values, {**before.metrics, "aepo/entropy": mean})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
