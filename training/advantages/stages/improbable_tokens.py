"""A cap on the improbable tokens of wrong answers: A_t ← A_t·min(1, π_t/floor) where A_t < 0.

Pushing down a token of probability .001 frees hardly any probability and moves the weights as far as pushing down one
of .5: ∇log π_t = ∇π_t/π_t. Below the floor the factor π_t is given back, so the gradient is that of A·π/floor: it goes
to 0 with what there is to win. π is the sampler's. The opposite of `negative_tokens`, which keeps the improbable ones:
which helps depends on whether wrong answers are accidents or habits.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.batch import Batch


class ImprobableTokens:
    """floor: the probability below which a negative token counts less."""

    def __init__(self, inner: Advantage, floor: Annotated[float, Field(gt=0, le=1)] = 0.05) -> None:
        self.inner, self.floor = inner, floor

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, negative ones of improbable tokens scaled down."""
        before = self.inner(batch)
        values = []
        for a, trajectory in zip(before.values, batch, strict=True):
            probability = np.exp(trajectory.logprobs[trajectory.action_mask].astype(np.float64))
            values.append(np.where(a < 0, a * np.minimum(1.0, probability / self.floor), a))
        return Advantages(values, before.metrics)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
