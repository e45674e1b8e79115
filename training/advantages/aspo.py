"""ASPO: shape the advantage, not the reward (arXiv 2508.19201, Sec. 3.3). Wraps any estimator: `ASPO(SPO(tracker))`.

    A ← A + clip(δ·(s − mean s)/mean L, −k·A, +k·A)      for trajectories that are correct and contain code

Early calls (the paper): s is the token position of the first call, L the response length; δ < 0 favours early code.
Frequent calls (an extension): s is the number of executed calls, L the same number; δ > 0 favours more calls.
Comparison set: all eligible trajectories of the batch (single-stream training has no group), the group in grouped
training, or running means per task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantage, Advantages, clipped, shape_early_calls
from solostream.training.advantages.groups import groups

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
        k: float = 0.7,
        *,
        signal: Signal = "first_call",
        eligible: Eligible = "code",
        compare: Compare = "batch",
        correct_from: float = 0.5,
    ) -> None:
        if not 0 < k < 1:
            raise UserError(f"ASPO needs 0 < k < 1 so that no advantage changes sign; got k={k}")
        self.inner, self.delta, self.k = inner, delta, k
        self.signal, self.eligible, self.compare, self.correct_from = signal, eligible, compare, correct_from
        self._running: dict[str, list[float]] = {}  # task -> count, Σs, ΣL over its eligible trajectories so far

    def __call__(self, batch: Sequence[Trajectory]) -> Advantages:
        before = self.inner(batch)
        columns = [self._columns(t) for t in batch]
        if self.compare == "running":
            values = self._shape_running(batch, before.values, columns)
        else:
            values = list(before.values)
            for members in self._comparison_sets(batch):
                s, length = zip(*(columns[i] for i in members), strict=True)
                correct = [s_i is not None for s_i in s]
                inner = [values[i] for i in members]
                shaped = shape_early_calls(inner, s, length, correct, self.delta, self.k)
                for i, value in zip(members, shaped, strict=True):
                    values[i] = value
        moved = [(a, b) for a, b in zip(before.values, values, strict=True) if a != b]
        at_bound = sum(abs(b - a) >= self.k * a * (1 - 1e-9) for a, b in moved)
        metrics = {
            "aspo/shaped": len(moved) / max(len(batch), 1),
            "aspo/clipped": at_bound / max(len(moved), 1),  # share of the shaped that the bounds cut
        }
        return Advantages(values, {**before.metrics, **metrics})

    def _columns(self, trajectory: Trajectory) -> tuple[float | None, float]:
        """(s, L); s is None where nothing is shaped: a wrong answer, or no code."""
        ok = trajectory.reward >= self.correct_from and ELIGIBLE[self.eligible](trajectory)
        if self.signal == "calls":
            calls = float(trajectory.n_calls)
            return (calls if ok else None), calls
        position = trajectory.first_call_token if ok else None
        return (None if position is None else float(position)), float(trajectory.response_length)

    def _comparison_sets(self, batch: Sequence[Trajectory]) -> list[list[int]]:
        if self.compare == "batch":
            return [list(range(len(batch)))] if batch else []
        return list(groups(batch).values())

    def _shape_running(
        self, batch: Sequence[Trajectory], values: Sequence[float], columns: Sequence[tuple[float | None, float]]
    ) -> list[float]:
        """Compare with the task's means, this batch included; below two eligible trajectories nothing is shaped."""
        for trajectory, (s, length) in zip(batch, columns, strict=True):
            if s is not None:
                seen = self._running.setdefault(trajectory.task_id, [0.0, 0.0, 0.0])
                seen[:] = seen[0] + 1, seen[1] + s, seen[2] + length
        shaped = list(values)
        for i, (trajectory, (s, _)) in enumerate(zip(batch, columns, strict=True)):
            count, total_s, total_length = self._running.get(trajectory.task_id, [0.0, 0.0, 0.0])
            if s is not None and count >= 2 and total_length > 0:
                term = self.delta * (s - total_s / count) / (total_length / count)
                shaped[i] += clipped(shaped[i], term, self.k)
        return shaped

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "running": {t: list(seen) for t, seen in self._running.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self._running = {t: list(seen) for t, seen in state["running"].items()}
