"""Weigh prioritised sampling back: A ← A·u, u ∝ 1/(√(v(1 − v)) + ε), mean 1 over the batch.

`prioritized` draws a task with probability q ∝ √(v(1 − v)) + ε, so the update maximises Σ q(x)·J(x). Horvitz and
Thompson (1952): divided by the probability of inclusion it is the pool's mean of J again, up to a constant. v is the
value frozen at dispatch, the one that the task was drawn by. Without replacement the probability is 1 − Π(1 − q) over
the draws of a batch, which is proportional to q while a batch is a small part of the pool.
Not in the papers. It is worth its price in variance only where the mean over the pool is what counts.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from solostream.errors import UserError
from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.batch import Batch


class InclusionWeights:
    """epsilon: the sampler's. Raises UserError for trajectories that were dispatched without a value."""

    def __init__(self, inner: Advantage, *, epsilon: Annotated[float, Field(gt=0)] = 0.05) -> None:
        self.inner, self.epsilon = inner, epsilon

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages over the probability that their task was drawn with."""
        before = self.inner(batch)
        inverse = [1 / (math.sqrt(_value(t.task_id, t.dispatch.value)) + self.epsilon) for t in batch]
        mean = math.fsum(inverse) / max(len(inverse), 1)
        values = [a * (u / mean) for a, u in zip(before.values, inverse, strict=True)]
        largest = max(inverse, default=1.0) / (mean or 1.0)
        return Advantages(values, {**before.metrics, "inclusion/largest": largest})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])


def _value(task_id: str, value: float | None) -> float:
    if value is None:
        raise UserError(
            f"task {task_id} was drawn without a value: inclusion_weights needs an advantage with a tracker"
        )
    return value * (1 - value)
