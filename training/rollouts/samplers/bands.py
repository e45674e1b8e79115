"""Bands of difficulty: hard v ≤ τ_h, medium τ_h < v ≤ τ_m, easy above, each with a share of the draws.

After CLPO's online curriculum (arXiv 2509.25004, Sec. 3.1), which sorts the problems of each batch by the accuracy of
their rollouts, and rewrites hard ones to be easier and medium ones to differ. Departures: nothing is rewritten, bands
decide what is drawn; the accuracy is the tracker's value, so one rollout a problem is enough (without a tracker: the
mean of the last rewards). Thresholds and shares are ours. The share of a band that is empty goes to the others.
A draw looks at a few tasks, and at all of them only when a band is rare.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from solostream.errors import UserError
from solostream.training.rollouts.samplers.history import OutcomeHistory
from solostream.training.rollouts.task_sampler import restore, state_of

GUESSES = 64  # tasks that are looked at before all are


class Bands:
    """hard, medium: τ_h and τ_m. shares: of hard, medium, easy. Raises UserError for bands that overlap."""

    def __init__(
        self,
        task_ids: Sequence[str],
        history: OutcomeHistory,
        seed: int = 0,
        *,
        hard: Annotated[float, Field(ge=0, le=1)] = 0.2,
        medium: Annotated[float, Field(ge=0, le=1)] = 0.8,
        shares: Annotated[tuple[float, float, float], Field(strict=False)] = (0.25, 0.65, 0.1),
    ) -> None:
        if not hard < medium:
            raise UserError(f"bands: hard = {hard:g} must be below medium = {medium:g}; both are rates of success")
        if min(shares) < 0 or not sum(shares) > 0:
            told = ", ".join(f"{share:g}" for share in shares)
            raise UserError(
                f"bands: shares = [{told}]: of hard, medium and easy tasks; none below 0, at least one above"
            )
        self.task_ids, self.history, self.shares = list(task_ids), history, shares
        self._borders = (hard, medium)
        self._random = random.Random(seed)

    def band(self, task_id: str) -> int:
        """0 hard, 1 medium, 2 easy."""
        return bisect_left(self._borders, self.history.value(task_id))

    def next(self) -> str:
        """A band by its share, a task of it."""
        (wanted,) = self._random.choices(range(3), self.shares)
        for _ in range(GUESSES):
            task_id = self._random.choice(self.task_ids)
            if self.band(task_id) == wanted:
                return task_id
        members: list[list[str]] = [[], [], []]
        for task_id in self.task_ids:
            members[self.band(task_id)].append(task_id)
        if not members[wanted]:
            weights = [share if found else 0.0 for share, found in zip(self.shares, members, strict=True)]
            if not sum(weights):  # all tasks are in bands of share 0
                weights = [float(len(found)) for found in members]
            (wanted,) = self._random.choices(range(3), weights)
        return self._random.choice(members[wanted])

    def state_dict(self) -> dict[str, Any]:
        """The state of its random numbers; bands follow from the values."""
        return {"random": state_of(self._random)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        restore(self._random, state["random"])
