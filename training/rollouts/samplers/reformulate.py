"""Reformulations: a problem never solved comes back as a multiple choice, then as a cloze (Cog-DRIFT, 2604.04767).

The ladder is four choices, ten choices, a gap to fill, the problem itself; a step is climbed when the mean of the last
rewards of a form exceeds `threshold` (the authors' 0.5; they take the mean of one batch's rollouts, here it is `window`
trajectories in a row, so that a lucky guess among four does not climb). Only a problem that was tried `patience` times
and never solved is put on the ladder, and the first answer to itself takes it off for good.
Departures: wrong choices are not written by a language model (`envs.data.forms`); forms that a problem does not have
are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from solostream.envs.data.forms import MARK, make_form
from solostream.envs.types import Task
from solostream.training.rollouts.samplers.history import RECENT, OutcomeHistory
from solostream.training.rollouts.samplers.inner import Of, inner


class Reformulate:
    """of: the sampler of problems. ladder: forms, the easiest first. window: rewards that decide on a step."""

    forms = ("choice=4", "choice=10", "cloze")

    def __init__(
        self,
        task_ids: Sequence[str],
        tasks: Mapping[str, Task],
        history: OutcomeHistory,
        seed: int = 0,
        batch: int = 1,
        *,
        of: Of = "uniform",
        ladder: Annotated[tuple[str, ...], Field(strict=False)] = ("choice=4", "choice=10", "cloze"),
        patience: Annotated[int, Field(ge=1)] = 4,
        threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        window: Annotated[int, Field(ge=1, le=RECENT)] = 4,
    ) -> None:
        self.inner = inner(of, task_ids, history, seed, batch)
        self.tasks, self.history, self.ladder = tasks, history, ladder
        self.patience, self.threshold, self.window = patience, threshold, window
        self._pool = tuple(tasks.values())

    def next(self) -> str:
        """A task, or the easiest form of it that is not mastered."""
        task_id, h = self.inner.next(), self.history
        if h.solved(task_id) or h.tried(task_id) < self.patience:
            return task_id
        for form in self.ladder:
            name = f"{task_id}{MARK}{form}"
            recent = h.recent(name)[-self.window :]
            climbed = len(recent) == self.window and fmean(recent) > self.threshold
            if not climbed and make_form(self.tasks[task_id], form, self._pool):
                return name
        return task_id

    def state_dict(self) -> dict[str, Any]:
        """The inner sampler's; where a problem stands on the ladder follows from the history."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
