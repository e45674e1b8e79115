"""Forgetting by measured calibration: what was wrong in the same direction twice is forgotten faster.

If the values of tasks are what they will earn, the errors of a task's successive visits are uncorrelated; values that
lag behind err twice with the same sign, values that jump after every outcome err with alternating ones (the whiteness
of innovations, Mehra 1970). Per batch, with standardized errors u = (r − v)/√(v(1 − v) + ε):

    c = mean u_now·u_before over the tasks of the batch that were seen before
    log(1 − ρ) ← log(1 − ρ) + η·c,  within the tracker's bounds

A task's u is its mean over the batch, and v its value as the batch is learnt. Outcomes that were judged by one value
without the others among its evidence share that value's error, (p − v)² > 0 in the mean, whatever the policy does: so
streams of one batch are no pairs, and the value that was frozen at dispatch is not the one to judge a late batch by.

and the D that a tracker is told is the one that gives this ρ. It takes the place of a distance between policies.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from solostream.training.advantages.value_tracker import ValueTracker

RATE = 1.0  # η
SMOOTH = 0.05  # ε


class CalibratedForgetting:
    """One ρ for all tasks, from the errors of their visits; it starts in the middle of the tracker's bounds."""

    def __init__(self, tracker: ValueTracker) -> None:
        self._fastest, self._slowest, self._d_half = 1 - tracker.rho_min, 1 - tracker.rho_max, tracker.d_half
        self._log_rate = (math.log(self._fastest) + math.log(self._slowest)) / 2
        self._errors: dict[str, float] = {}  # of each task's last visit

    @property
    def rho(self) -> float:
        """The forgetting factor of now."""
        return 1 - math.exp(self._log_rate)

    @property
    def divergence(self) -> float:
        """The D, in nats a token, whose forgetting factor is `rho`."""
        return -self._d_half * math.log2(self.rho)

    def update(self, task_ids: Sequence[str], rewards: Sequence[float], values: Sequence[float]) -> None:
        """One batch; values: of the tasks as they are before any of it is learnt."""
        found: dict[str, list[float]] = defaultdict(list)
        for task_id, r, v in zip(task_ids, rewards, values, strict=True):
            found[task_id].append((r - v) / math.sqrt(v * (1 - v) + SMOOTH))
        errors = {task_id: fmean(of_task) for task_id, of_task in found.items()}
        products = [error * self._errors[task_id] for task_id, error in errors.items() if task_id in self._errors]
        self._errors |= errors
        if products:
            moved = self._log_rate + RATE * fmean(products)
            self._log_rate = min(max(moved, math.log(self._slowest)), math.log(self._fastest))

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"log_rate": self._log_rate, "errors": dict(self._errors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._log_rate, self._errors = state["log_rate"], dict(state["errors"])
