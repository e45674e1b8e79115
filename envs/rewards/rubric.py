"""A rubric: rewards by name and their weights. A reward is a function of a finished episode with values in [0, 1]."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from solostream.envs.rewards.calls import RewardCall, shared_call
from solostream.envs.rewards.episode import Episode, Score
from solostream.errors import UserError

# Of every reward, beside its own options.
SETTINGS = ("run", "timeout_s", "batch", "batch_wait_s")
RewardSource = str | Mapping[str, float | Mapping[str, Any]]


class Rubric:
    """A weighted sum of rewards, in [0, 1]."""

    def __init__(self, source: RewardSource) -> None:
        """`source`: one reward's name, or name -> weight, or name -> {weight, run, timeout_s, batch, …, its options}.

        A name is built in, an entry point of `solostream.reward`, or `package.module:function`. Raises UserError for an
        unknown name or option, and for weights that are negative or sum to more than 1.
        """
        tables = {source: 1.0} if isinstance(source, str) else dict(source)
        self.weights: dict[str, float] = {}
        self._calls: dict[str, RewardCall] = {}
        for name, value in tables.items():
            table = dict(value) if isinstance(value, Mapping) else {"weight": value}
            weight = table.pop("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise UserError(f"reward {name!r}: its weight must be a number, not {weight!r}")
            settings = {key: table.pop(key) for key in SETTINGS if key in table}
            self.weights[name] = float(weight)
            self._calls[name] = shared_call(name, table, settings)
        total = math.fsum(self.weights.values())
        if not self.weights or min(self.weights.values()) < 0 or not 0 < total <= 1 + 1e-9:
            raise UserError(f"reward weights must be at least 0 and sum to at most 1, not {self.weights}")

    async def scores(self, episode: Episode, workspace: Any = None) -> dict[str, Score]:
        """Each reward by itself, all at once. Raises RewardError when one of them cannot be had."""
        found = await asyncio.gather(
            *(call(episode, workspace) for call in self._calls.values()), return_exceptions=True
        )
        for score in found:
            if isinstance(score, BaseException):
                raise score
        return dict(zip(self._calls, found, strict=True))  # type: ignore[arg-type]

    def total(self, scores: Mapping[str, Score]) -> float:
        """The weighted sum of the scores, at most 1."""
        return min(1.0, math.fsum(self.weights[name] * score.value for name, score in scores.items()))
