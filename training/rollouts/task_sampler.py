"""Which task next. Prioritised: weight √(v(1 − v)) + ε (SPO, arXiv 2509.13232, Eq. 11). Uniform: shuffled passes.

Prioritised drawing is by rejection: take a task at random, keep it with probability weight / (0.5 + ε). It follows the
exact weights of this moment and costs a few look-ups, however many tasks there are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from solostream.errors import UserError
from solostream.training.advantages.value_tracker import ValueTracker


class TaskSampler:
    """Draws (task id, group): `streams` draws in a row share a task and a group number.

    tracker: None draws uniformly, each task once a pass. Raises UserError when there is nothing to draw from.
    """

    def __init__(
        self,
        task_ids: Sequence[str],
        tracker: ValueTracker | None = None,
        *,
        streams: int = 1,
        epsilon: float = 0.05,
        seed: int = 0,
    ) -> None:
        if not task_ids or len(set(task_ids)) != len(task_ids):
            raise UserError("the sampler needs at least one task, and no task id twice")
        if streams < 1 or epsilon <= 0:
            raise UserError(f"the sampler needs streams >= 1 and epsilon > 0; got {streams} and {epsilon}")
        self.task_ids, self.tracker, self.streams, self.epsilon = list(task_ids), tracker, streams, epsilon
        self._random = random.Random(seed)
        self._pass: list[int] = []  # places still to come in this pass, the next one last
        self._task, self._left, self._group = "", 0, -1

    def draw(self) -> tuple[str, int]:
        """The next task and its group."""
        if self._left == 0:
            self._task, self._left, self._group = self._next(), self.streams, self._group + 1
        self._left -= 1
        return self._task, self._group

    def _next(self) -> str:
        if self.tracker is None:
            if not self._pass:
                self._pass = list(range(len(self.task_ids)))
                self._random.shuffle(self._pass)
            return self.task_ids[self._pass.pop()]
        while True:
            task_id = self._random.choice(self.task_ids)
            v = self.tracker.value(task_id)
            weight = math.sqrt(v * (1 - v)) + self.epsilon
            if self._random.random() * (0.5 + self.epsilon) < weight:
                return task_id

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types. The tracker keeps its own state."""
        version, internal, gauss = self._random.getstate()
        return {
            "random": [version, list(internal), gauss],
            "pass": list(self._pass),
            "current": [self._task, self._left, self._group],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError when the state belongs to another set of tasks."""
        if any(not 0 <= i < len(self.task_ids) for i in state["pass"]):
            raise UserError("the sampler's checkpoint belongs to another set of tasks; resume with the same data")
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        self._pass = list(state["pass"])
        self._task, self._left, self._group = state["current"]
