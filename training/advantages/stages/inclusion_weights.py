"""Weigh prioritised sampling back: A ← A·u, u ∝ 1/w, mean 1 over what is trained on; w = √(v(1 − v))/N^γ + ε.

`prioritized` draws a task with probability q = w/Σw, so the update maximises Σ q(x)·J(x). Horvitz and Thompson (1952):
divided by the probability of inclusion it is the pool's mean of J again; up to one factor, for the batch's own mean
stands in place of Σw. w is as it was drawn by: v is the value frozen at dispatch; N = max(α + β, 1) is not frozen, so
it is the tracker's before this batch's evidence, which has in it what other episodes of the task brought since. ε and γ
are the sampler's own.

It holds for a batch that is a small part of the pool. Of B draws without replacement the probability of inclusion is
1 − exp(−λw) with Σ(1 − exp(−λw)) = B, which is proportional to w only while B is small: where half of the pool weighs
.55 and half .05, 1/w corrects by 11 where 10.1 would be right at a batch of a tenth of the pool, 5.4 at one of half,
and 1 where a batch is the whole pool and nothing has to be weighed back.
Not in the papers. It is worth its price in variance only where the mean over the pool is what counts.
"""

from __future__ import annotations

import math
from typing import Any

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.evaluation.training_curves import sampling_weight
from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.batch import Batch, kept_of
from solostream.training.rollouts.task_sampler import Prioritized, Sampler


class InclusionWeights:
    """sampler: the run's. Raises UserError for one of another law, and for what was dispatched without a value."""

    def __init__(self, inner: Advantage, sampler: Sampler | None) -> None:
        if not isinstance(sampler, Prioritized):
            raise UserError(
                "inclusion_weights undoes the preference of the sampler 'prioritized', and would bias any other: "
                "set algorithm.sampler = 'prioritized', or leave it out of algorithm.stages"
            )
        self.inner, self._sampler = inner, sampler

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages over the probability that their task was drawn with."""
        inverse = [1 / self._weight(t) for t in batch]  # first: the inner estimator tells the tracker of this batch
        before = self.inner(batch)
        trained = [u for u, keep in zip(inverse, kept_of(batch), strict=True) if keep]
        mean = math.fsum(trained) / len(trained) if trained else 1.0
        values = [a * (u / mean) for a, u in zip(before.values, inverse, strict=True)]
        largest = max(trained, default=mean) / mean
        return Advantages(values, {**before.metrics, "inclusion/largest": largest})

    def _weight(self, trajectory: Trajectory) -> float:
        value, sampler = trajectory.dispatch.value, self._sampler
        if value is None:
            raise UserError(
                f"task {trajectory.task_id} was drawn without a value: inclusion_weights needs an advantage with a "
                "tracker"
            )
        evidence = sum(sampler.tracker.evidence(trajectory.task_id))
        return sampling_weight(value, sampler.epsilon, sampler.gamma, evidence)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
