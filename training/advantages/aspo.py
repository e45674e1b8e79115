"""ASPO: shape the advantage, not the reward (arXiv 2508.19201, Sec. 3.3). Wraps any estimator: `ASPO(SPO(tracker))`.

    A ← A + clip(δ·(s − mean s)/mean L, −k·A, +k·A)      for trajectories that are correct and contain code

Early calls (the paper): s is the token position of the first call, L the response length; δ < 0 favours early code.
Frequent calls (an extension): s is the number of executed calls, L the same number; δ > 0 favours more calls.
Comparison set: all eligible trajectories of the batch (single-stream training has no group), the group in grouped
training, or running means per task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantage, Advantages, Grouping, call_terms, clipped
from solostream.training.advantages.groups import groups
from solostream.training.batch import Batch, kept_of

Signal = Literal["first_call", "calls"]
Eligible = Literal["code", "executed", "passed"]
Compare = Literal["batch", "group", "running"]

ELIGIBLE: dict[Eligible, Callable[[Trajectory], bool]] = {
    "code": lambda t: t.first_call_token is not None,  # a complete call was written
    "executed": lambda t: t.n_calls > 0,
    "passed": lambda t: t.code_pass_ratio == 1.0,  # every executed call ended without an error
}


class ASPO:
    """A stage around `inner`; (delta, k) = (−2.0, 0.7) is the paper's conservative, (−2.5, 0.9) its aggressive setting.

    correct_from: the reward from which a trajectory counts as correct.
    Raises UserError when k is not in (0, 1), and on grouped comparison without groups.
    """

    def __init__(
        self,
        inner: Advantage,
        delta: float = -2.0,
        k: Annotated[float, Field(gt=0, lt=1)] = 0.7,
        *,
        signal: Signal = "first_call",
        eligible: Eligible = "code",
        compare: Compare = "batch",
        correct_from: Annotated[float, Field(ge=0, le=1)] = 0.5,
    ) -> None:
        if not 0 < k < 1:
            raise UserError(f"ASPO needs 0 < k < 1 so that no advantage changes sign; got k={k}")
        self.inner, self.delta, self.k = inner, delta, k
        self.in_parts = compare == "group"  # the others compare with what has not landed yet
        self.groups: Grouping = "required" if compare == "group" else "none"
        self.signal, self.eligible, self.compare, self.correct_from = signal, eligible, compare, correct_from
        self._running: dict[str, list[float]] = {}  # task -> count, Σs, ΣL over its eligible trajectories so far

    def __call__(self, batch: Batch) -> Advantages:
        """The inner estimator's advantages, with early calls of correct trajectories raised within ±k·A."""
        before = self.inner(batch)
        values = list(before.values)
        shaped = cut = 0
        for i, term in self._terms(batch).items():
            move = clipped(values[i], term, self.k)  # [action tokens]
            values[i] = values[i] + move
            if move.any():
                shaped += 1
                cut += bool((np.abs(move) >= self.k * np.abs(before.values[i]) * (1 - 1e-9)).all())
        metrics = {
            "aspo/shaped": shaped / max(len(batch), 1),
            "aspo/clipped": cut / max(shaped, 1),  # share of the shaped that the bounds cut
        }
        return Advantages(values, {**before.metrics, **metrics})

    def _terms(self, batch: Batch) -> dict[int, float]:
        """δ·(s − mean s)/mean L, unclipped, by place in `batch`; places that are not shaped are missing."""
        columns = [self._columns(t) if keep else (None, 0.0) for t, keep in zip(batch, kept_of(batch), strict=True)]
        if self.compare == "running":
            return self._running_terms(batch, columns)
        terms: dict[int, float] = {}
        for members in self._comparison_sets(batch):
            signal, length = zip(*(columns[i] for i in members), strict=True)
            found = call_terms(signal, length, self.delta)
            terms.update({members[place]: term for place, term in found.items()})
        return terms

    def _columns(self, trajectory: Trajectory) -> tuple[float | None, float]:
        """(s, L); s is None where nothing is shaped: a wrong answer, or no code."""
        ok = trajectory.reward >= self.correct_from and ELIGIBLE[self.eligible](trajectory)
        if self.signal == "calls":
            calls = float(trajectory.n_calls)
            return (calls if ok else None), calls
        position = trajectory.first_call_token if ok else None
        return (None if position is None else float(position)), float(trajectory.response_length)

    def _comparison_sets(self, batch: Batch) -> list[list[int]]:
        if self.compare == "batch":
            return [list(range(len(batch)))] if batch else []
        return list(groups(batch).values())

    def _running_terms(self, batch: Batch, columns: Sequence[tuple[float | None, float]]) -> dict[int, float]:
        """Compare with the task's means, this batch included; below two eligible trajectories nothing is shaped."""
        for trajectory, (s, length) in zip(batch, columns, strict=True):
            if s is not None:
                seen = self._running.setdefault(trajectory.task_id, [0.0, 0.0, 0.0])
                seen[:] = seen[0] + 1, seen[1] + s, seen[2] + length
        terms: dict[int, float] = {}
        for i, (trajectory, (s, _)) in enumerate(zip(batch, columns, strict=True)):
            count, total_s, total_length = self._running.get(trajectory.task_id, [0.0, 0.0, 0.0])
            if s is not None and count >= 2 and total_length > 0:
                terms[i] = self.delta * (s - total_s / count) / (total_length / count)
        return terms

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's state and the running means of every task."""
        return {"inner": self.inner.state_dict(), "running": {t: list(seen) for t, seen in self._running.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        self._running = {t: list(seen) for t, seen in state["running"].items()}
