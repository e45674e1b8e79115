"""Dual-level advantages, the second half of MatchTIR (arXiv 2601.10712; its turn rewards are the environment's here).

    R_t = Σ_{s ≥ t} γ^(s − t)·r_s over the turns,   A'_t = (R_t − mean)/(std + ε) among the t-th turns of the group
    A_t ← (1 − w)·A + w·A'_t,   A the trajectory's advantage by the estimator inside

γ = .9, ε = 1e-6 and the mean of the two (w = ½) are those of the authors' code, where A is GRPO's.
Departures: a turn that nothing is compared with gets A' = 0 (their code leaves R_t as it is). Without groups the t-th
turns of the whole batch are compared, so that a single stream has it, too.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean, stdev
from typing import Annotated, Any

from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages, Grouping
from solostream.training.advantages.credit.steps import returns, spans
from solostream.training.batch import Batch, kept_of


class DualLevel:
    """gamma: of what later turns are paid. weight: of the turn's own advantage. epsilon: added to the deviation."""

    groups: Grouping = "optional"

    def __init__(
        self,
        inner: Advantage,
        *,
        gamma: Annotated[float, Field(ge=0, le=1)] = 0.9,
        weight: Annotated[float, Field(ge=0, le=1)] = 0.5,
        epsilon: Annotated[float, Field(gt=0)] = 1e-6,
    ) -> None:
        self.inner, self.gamma, self.weight, self.epsilon = inner, gamma, weight, epsilon

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, mixed with those of the turns."""
        before = self.inner(batch)
        paid = [returns(t, self.gamma) for t in batch]
        cells: dict[tuple[int | None, int], list[int]] = defaultdict(list)  # (group, which turn) -> places
        for i, (trajectory, keep) in enumerate(zip(batch, kept_of(batch), strict=True)):
            for t in range(len(paid[i]) if keep else 0):
                cells[trajectory.dispatch.group, t].append(i)

        values = [(1 - self.weight) * v for v in before.values]
        parts = [spans(t) for t in batch]
        alone = 0
        for (_, t), members in cells.items():
            found = [paid[i][t] for i in members]
            alone += len(found) == 1
            mean, deviation = fmean(found), stdev(found) if len(found) > 1 else 0.0
            for i, r in zip(members, found, strict=True):
                values[i][parts[i][t]] += self.weight * (r - mean) / (deviation + self.epsilon)
        turns = sum(map(len, cells.values()))
        return Advantages(values, {**before.metrics, "dual_level/alone": alone / max(turns, 1)})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
