"""GiGPO, a group inside the group (arXiv 2505.10978, Sec. 4).

    A_t ← A + ω·A^S_t,   A^S_t = (R_t − mean)/F over the steps of the group that were taken in the same (anchor) state
    R_t = Σ_{s ≥ t} γ^(s − t)·r_s,   F the deviation of those R, or 1

A is the estimator's inside (the paper's: GRPO's); ω = 1 and γ = .95 are the authors'. Answers to one prompt that come
through the same state are an experiment: what each did next, and what came of it. A state seen once gives A^S = 0.
Departure: a state is the history of calls and outputs, for an output alone does not say what an interpreter holds;
`state = "observation"` is the authors' (`credit.steps`).
"""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean, stdev
from typing import Annotated, Any

from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages, Grouping
from solostream.training.advantages.credit.steps import State, returns, spans, states
from solostream.training.advantages.groups import groups
from solostream.training.batch import Batch


class GiGPO:
    """omega: the weight of the step's advantage. divide: by the deviation. Raises UserError without groups."""

    groups: Grouping = "required"
    in_parts = True

    def __init__(
        self,
        inner: Advantage,
        *,
        omega: Annotated[float, Field(ge=0)] = 1.0,
        gamma: Annotated[float, Field(ge=0, le=1)] = 0.95,
        divide: bool = True,
        state: State = "history",
    ) -> None:
        self.inner, self.omega, self.gamma, self.divide, self.state = inner, omega, gamma, divide, state

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, and on each turn how it did among those taken in the same state."""
        before = self.inner(batch)
        values = [v.copy() for v in before.values]
        compared = turns = 0
        for members in groups(batch).values():
            anchors: dict[str, list[tuple[int, slice, float]]] = defaultdict(list)
            for i in members:
                steps = zip(states(batch[i], self.state), spans(batch[i]), returns(batch[i], self.gamma), strict=True)
                for state, span, paid in steps:
                    anchors[state].append((i, span, float(paid)))
            for places in anchors.values():
                found = [paid for *_, paid in places]
                turns += len(found)
                if len(found) > 1:
                    compared += len(found)
                    mean, scale = fmean(found), stdev(found) + 1e-6 if self.divide else 1.0
                    for i, span, paid in places:
                        values[i][span] += self.omega * (paid - mean) / scale
        return Advantages(values, {**before.metrics, "gigpo/compared": compared / max(turns, 1)})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
