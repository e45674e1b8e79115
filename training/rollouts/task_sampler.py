"""Which task next, a component of the kind "sampler" (`algorithm.sampler`). Curricula are in `rollouts.samplers`.

Prioritised: weight √(v(1 − v)) + ε (SPO, arXiv 2509.13232, Eq. 11). Uniform: shuffled passes.

Prioritised drawing is by rejection: take a task at random, keep it with probability weight / (0.5 + ε). It follows the
exact weights of this moment and costs a few look-ups, however many tasks there are. Of each batch's worth of draws no
task comes twice (the authors draw with `replace=False`): one that came is passed over until the next begins.

What that does to the objective: Σ q(x) J(x) is maximised, q ∝ weight, not the pool's mean of J. Neither paper nor
authors weigh it back; the stage `inclusion_weights` does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Field

from solostream.envs.data.forms import base_of
from solostream.errors import UserError
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.rollouts.samplers.history import Outcome, OutcomeHistory


@runtime_checkable
class Sampler(Protocol):
    """Chooses tasks.

    A factory may ask for `task_ids`, `tasks` (by id), `tracker` (where an advantage keeps one), `sources` (of the task
    ids), `history` (what came of earlier draws; its attribute `history` then says that the run is to keep it), `seed`,
    `batch` (draws of one update). It may have `metrics()`, numbers by name, and `forms`, the longest ones that it asks
    for. What it draws may be a form of a task, "ID~FORM" (`envs.data.forms`).
    """

    def next(self) -> str:
        """The id of the task to play next."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the tracker's."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` that went through JSON: the same draws follow."""


class Prioritized:
    """gamma: evidence counts, √(v(1 − v))/N^γ + ε (the conference version of SPO). batch: draws without replacement.

    Raises UserError for an epsilon that would leave tasks out for ever.
    """

    def __init__(
        self,
        task_ids: Sequence[str],
        tracker: ValueTracker,
        seed: int = 0,
        batch: int = 1,
        *,
        epsilon: Annotated[float, Field(gt=0)] = 0.05,
        gamma: Annotated[float, Field(ge=0)] = 0.0,
    ) -> None:
        if epsilon <= 0:
            raise UserError(f"the sampler needs epsilon > 0; got {epsilon}")
        self.task_ids, self.tracker, self.epsilon, self.gamma = list(task_ids), tracker, epsilon, gamma
        self._block = min(batch, len(self.task_ids))
        self._drawn: list[str] = []  # since the block began
        self._random = random.Random(seed)

    def next(self) -> str:
        """A task drawn by its weight, by rejection: the tracker is read only for the candidates."""
        if len(self._drawn) >= self._block:
            self._drawn = []
        passed = set(self._drawn)
        while True:
            task_id = self._random.choice(self.task_ids)
            if task_id in passed:
                continue
            (weight,) = self.tracker.weights([task_id], self.epsilon, self.gamma)
            if self._random.random() * (0.5 + self.epsilon) < weight:
                self._drawn.append(task_id)
                return task_id

    def state_dict(self) -> dict[str, Any]:
        """The state of its random numbers, and what this batch's draws have had."""
        return {"random": state_of(self._random), "drawn": list(self._drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        restore(self._random, state["random"])
        self._drawn = list(state["drawn"])


class Uniform:
    """Each task once a pass, every pass in an order of its own."""

    def __init__(self, task_ids: Sequence[str], seed: int = 0) -> None:
        self.task_ids = list(task_ids)
        self._random = random.Random(seed)
        self._pass: list[int] = []  # places still to come in this pass, the next one last

    def next(self) -> str:
        """The next task of a random pass over all; then another pass."""
        if not self._pass:
            self._pass = list(range(len(self.task_ids)))
            self._random.shuffle(self._pass)
        return self.task_ids[self._pass.pop()]

    def state_dict(self) -> dict[str, Any]:
        """The state of its random numbers, and what is left of the pass."""
        return {"random": state_of(self._random), "pass": list(self._pass)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError when the state belongs to another set of tasks."""
        if any(not 0 <= i < len(self.task_ids) for i in state["pass"]):
            raise UserError("the sampler's checkpoint belongs to another set of tasks; resume with the same data")
        restore(self._random, state["random"])
        self._pass = list(state["pass"])


class TaskSampler:
    """Draws (task id, group): `streams` draws in a row share a task, which `sampler` chose, and a group number.

    Raises UserError when there is nothing to draw from.
    """

    def __init__(self, task_ids: Sequence[str], sampler: Sampler, *, streams: int = 1) -> None:
        if not task_ids or len(set(task_ids)) != len(task_ids):
            raise UserError("the sampler needs at least one task, and no task id twice")
        if streams < 1:
            raise UserError(f"the sampler needs streams >= 1; got {streams}")
        self._known, self.sampler, self.streams = set(task_ids), sampler, streams
        self.history: OutcomeHistory | None = getattr(sampler, "history", None)
        self._task, self._left, self._group = "", 0, -1

    def draw(self) -> tuple[str, int]:
        """The next task and its group. Raises UserError for a task that a sampler made up."""
        if self._left == 0:
            self._task, self._left, self._group = self.sampler.next(), self.streams, self._group + 1
            if self._task not in self._known and base_of(self._task) not in self._known:
                raise UserError(f"the sampler chose {self._task!r}, which is none of the {len(self._known)} tasks")
        self._left -= 1
        return self._task, self._group

    def skip(self, group: int) -> None:
        """What is drawn from now on has groups after `group`: up to there a log has them, of other tasks."""
        self._group = max(self._group, group)

    def learn(self, outcomes: Iterable[Outcome]) -> dict[str, float]:
        """Tell the sampler's history what a batch has brought; returns the sampler's metrics."""
        if self.history is not None:
            self.history.learn(outcomes)
        metrics = getattr(self.sampler, "metrics", None)
        return dict(metrics()) if metrics else {}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types. The tracker keeps its own state."""
        return {
            "sampler": self.sampler.state_dict(),
            "current": [self._task, self._left, self._group],
            **({"history": self.history.state_dict()} if self.history is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError when the state belongs to another set of tasks."""
        self.sampler.load_state_dict(state["sampler"])
        self._task, self._left, self._group = state["current"]
        if self.history is not None:
            self.history.load_state_dict(state["history"])


def state_of(source: random.Random) -> list[Any]:
    """The state of random numbers, as JSON has it."""
    version, internal, gauss = source.getstate()
    return [version, list(internal), gauss]


def restore(source: random.Random, state: Sequence[Any]) -> None:
    """The inverse of `state_of`."""
    version, internal, gauss = state
    source.setstate((version, tuple(internal), gauss))
