"""Calls cost where they are not needed: the reward of a right answer with calls is r·(1 − v₀(x)^α) while v₀(x) > τ.

v₀ is the tracker's value of the form `x~direct`, the policy without its tool, which the sampler `direct` keeps. After
the adaptive reward of A²FM (arXiv 2510.12838, "adaptive policy optimization"): on a query that the instant mode solves,
a right answer of a costlier mode is paid less, the less the oftener that mode succeeds. Where v₀ is low calls are free,
and a wrong answer is never paid more.
Departures: the success rate is a tracked value and not a group's; α and τ are ours (we read the paper's method, not its
table of settings); what the inner estimator and its tracker see is the reward after the cost, so that v(x) stays what
an episode of x is expected to earn. Trajectories in the log keep the reward that the environment paid.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from solostream.agent.trajectory import Trajectory
from solostream.envs.data.forms import MARK
from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch, kept_of


class ToolCost:
    """power: α. known: τ. Where no estimator inside keeps the tracker, this stage does."""

    def __init__(
        self,
        inner: Advantage,
        tracker: ValueTracker,
        *,
        power: Annotated[float, Field(gt=0)] = 2.0,
        known: Annotated[float, Field(ge=0, le=1)] = 0.75,
    ) -> None:
        self.inner, self.tracker, self.power, self.known = inner, tracker, power, known
        self._keeper = None if _kept_inside(inner) else SPO(tracker)

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages of the rewards after the cost."""
        costs = [self.cost(t) for t in batch]
        paid = [replace(t, reward=t.reward * (1 - c)) if c else t for t, c in zip(batch, costs, strict=True)]
        priced = Batch(paid, kept_of(batch))
        found = self.inner(priced)
        if self._keeper is not None:
            self._keeper(priced)
        return Advantages(found.values, {**found.metrics, "tool_cost/mean": fmean(costs) if costs else 0.0})

    def cost(self, trajectory: Trajectory) -> float:
        """The share of its reward that a trajectory's calls cost."""
        alone = self.tracker.value(f"{trajectory.task_id}{MARK}direct")
        return alone**self.power if trajectory.n_calls and alone > self.known else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])


def _kept_inside(advantage: Any) -> bool:
    """Whether an estimator inside keeps the tracker already: evidence counts once."""
    while advantage is not None:
        if isinstance(getattr(advantage, "tracker", None), ValueTracker):
            return True
        advantage = getattr(advantage, "inner", None)
    return False
