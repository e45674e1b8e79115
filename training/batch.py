"""`Batch`: trajectories that may be trained on, checked once, where they come together.

Everything behind it (estimators, learner, metrics, log) relies on three facts and asks for none of them again: every
reward is finite, it lies on [0, 1], and no trajectory was ended by the infrastructure. Rewards come onto [0, 1] where
episodes are played (`rollouts.env_pool`, from `algorithm.reward_range`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError


class Batch(Sequence[Trajectory]):
    """An immutable sequence of B trajectories. Raises UnfitBatch, with the task ids, for what cannot be trained on.

    kept: B booleans, which of them the learner's filters leave in the update; None: all. An estimator centres over
    these alone, and takes evidence from all.
    """

    __slots__ = ("_trajectories", "kept")

    def __init__(self, trajectories: Iterable[Trajectory], kept: Sequence[bool] | None = None) -> None:
        self._trajectories = tuple(trajectories)
        self.kept = (True,) * len(self._trajectories) if kept is None else tuple(kept)
        if len(self.kept) != len(self._trajectories):
            raise ValueError(f"{len(self.kept)} flags for {len(self._trajectories)} trajectories")
        faults: dict[str, list[str]] = {}
        for trajectory in self._trajectories:
            why = fault(trajectory)
            if why is not None:
                faults.setdefault(why, []).append(f"{trajectory.task_id} ({trajectory.reward:g})")
        if faults:
            raise UnfitBatch("; ".join(f"{why}: tasks {', '.join(tasks)}" for why, tasks in faults.items()))

    @overload
    def __getitem__(self, place: int) -> Trajectory: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Trajectory, ...]: ...
    def __getitem__(self, place: int | slice) -> Trajectory | tuple[Trajectory, ...]:
        return self._trajectories[place]

    def __len__(self) -> int:
        return len(self._trajectories)


def kept_of(batch: Sequence[Trajectory]) -> Sequence[bool]:
    """Which trajectories the update is made of; of a plain sequence all."""
    return batch.kept if isinstance(batch, Batch) else (True,) * len(batch)


class UnfitBatch(UserError):
    """Rewards that are no outcomes; nothing was learned from them."""


def fault(trajectory: Trajectory) -> str | None:
    """What keeps a trajectory out of every batch, with the remedy; None when nothing does."""
    if trajectory.ending == "infra":
        return "an infrastructure failure is no outcome, drop it"
    if not math.isfinite(trajectory.reward):
        return "rewards that are not finite, mend the environment's scoring"
    if not 0 <= trajectory.reward <= 1:
        return "rewards outside [0, 1], set algorithm.reward_range to what the environment pays"
    return None


def dump(trajectories: Iterable[Trajectory], folder: Path, step: int) -> Path:
    """Write what stopped step `step` where it can be looked at."""
    path = folder / f"bad-batch-{step}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(t.to_json() + "\n" for t in trajectories), encoding="utf-8")
    return path
