"""Hints: while a problem is hopeless, a share of its reference solution stands in the prompt (GHPO, arXiv 2507.10628).

The authors play each prompt again with 25, 50 and 75 % of the solution while all answers of its group are wrong. Here
the share is chosen before a problem is sent out: the smallest ω of 0, 0.25, 0.5, 0.75 whose form is not hopeless,
v(x~ω) > near. One not yet tried is not; so ω grows a step at a time as forms fail. It fades in the same way: a share
`probe` of the draws goes out one step below, and what succeeds there is the smallest from then on.
Departures: this choice by values, and `probe`, which replaces the authors' playing everything without a hint first.
A problem without a reference solution is never given a hint (`envs.data.forms.solution_of`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from solostream.envs.data.forms import MARK, make_form
from solostream.envs.types import Task
from solostream.training.rollouts.samplers.history import OutcomeHistory
from solostream.training.rollouts.samplers.inner import Of, inner
from solostream.training.rollouts.task_sampler import restore, state_of


class Hints:
    """of: the sampler of problems. near: a value up to which a form is hopeless. shares: of the solution, growing."""

    forms = ("hint=1",)  # what the longest prompt may be of

    def __init__(
        self,
        task_ids: Sequence[str],
        tasks: Mapping[str, Task],
        history: OutcomeHistory,
        seed: int = 0,
        batch: int = 1,
        *,
        of: Of = "uniform",
        near: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        shares: Annotated[tuple[float, ...], Field(strict=False)] = (0.25, 0.5, 0.75),
        probe: Annotated[float, Field(ge=0, le=1)] = 0.2,
    ) -> None:
        self.inner = inner(of, task_ids, history, seed, batch)
        self.tasks, self.history, self.near, self.shares, self.probe = tasks, history, near, shares, probe
        self._random = random.Random(seed)

    def next(self) -> str:
        """A task, with the smallest hint that is not hopeless, or now and then one less."""
        task_id = self.inner.next()
        probing = self._random.random() < self.probe
        ladder = [task_id, *self._hinted(task_id)]
        promising = [place for place, form in enumerate(ladder) if self.history.value(form) > self.near]
        place = promising[0] if promising else len(ladder) - 1
        return ladder[max(place - probing, 0)]

    def _hinted(self, task_id: str) -> list[str]:
        if self.history.value(task_id) > self.near:
            return []
        made = [f"hint={share:g}" for share in self.shares]
        return [f"{task_id}{MARK}{form}" for form in made if make_form(self.tasks[task_id], form)]

    def state_dict(self) -> dict[str, Any]:
        """The inner sampler's, and its own random numbers."""
        return {"inner": self.inner.state_dict(), "random": state_of(self._random)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        restore(self._random, state["random"])
