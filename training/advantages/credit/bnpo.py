"""BNPO (arXiv 2506.02864): advantages normalised by a Beta distribution that follows the prompts' success rates.

    A = (r − p)/f(p; α, β),   f the density of Beta(α, β),   α = 1 + a/3,  β = 1 + b/3
    a = cE,  b = c(1 − E),  c = E(1 − E)/Var − 1      the moments of the success rates p of the batch's prompts

Where most prompts lie is the largest density, and an advantage counts least: the batch's few others are heard.
`bnpo_stream`: p is the tracker's frozen value, so nothing has to be sampled twice (this project's). `bnpo`: the mean of
the group, as in the paper. Departures: f is kept within [floor, 1/floor], for it goes to 0 at 0 and 1, and to infinity
where all prompts come alike; where all p are equal there is no shape to follow and f = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pvariance
from typing import Annotated, Any

from pydantic import Field

from solostream.training.advantages.base import Advantages, Grouping, per_token
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import SPO, spread
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch, kept_of

Floor = Annotated[float, Field(gt=0, le=1)]


class BNPO:
    """floor: of the density that divides; 1/floor: its largest. Raises UserError for trajectories without a group."""

    groups: Grouping = "required"

    def __init__(self, *, floor: Floor = 0.1) -> None:
        self.floor = floor

    def __call__(self, batch: Batch) -> Advantages:
        """(r − mean)/f(mean) within each group. Raises UserError without groups."""
        r, values = [t.reward for t in batch], [0.0] * len(batch)
        sets = [members for members in groups(batch).values() if members]
        rates = [fmean(r[i] for i in members) for members in sets]
        for members, p, f in zip(sets, rates, densities(rates, shape(rates), self.floor), strict=True):
            for i in members:
                values[i] = (r[i] - p) / f
        metrics = {**spread(values, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        return Advantages(per_token(values, batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


class BNPOStream:
    """floor, 1/floor: bounds of the density that divides. The tracker learns as SPO's does, whose errors it raises."""

    def __init__(self, tracker: ValueTracker, *, floor: Floor = 0.1) -> None:
        self.tracker, self.floor = tracker, floor
        self._keeper = SPO(tracker)

    def __call__(self, batch: Batch) -> Advantages:
        """(r − v)/f(v), v frozen at dispatch; the outcomes then enter the tracker."""
        metrics = self._keeper(batch).metrics
        pairs = [(t.reward, t.dispatch.value or 0.0) for t in batch]
        of_shape = [v for (_, v), keep in zip(pairs, kept_of(batch), strict=True) if keep]
        alpha, beta = shape(of_shape)
        bounded = densities([v for _, v in pairs], (alpha, beta), self.floor)
        values = [(r - v) / f for (r, v), f in zip(pairs, bounded, strict=True)]
        return Advantages(per_token(values, batch), {**metrics, "bnpo/alpha": alpha, "bnpo/beta": beta})

    def state_dict(self) -> dict[str, Any]:
        """The keeper's."""
        return {"keeper": self._keeper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._keeper.load_state_dict(state["keeper"])


def densities(rates: Sequence[float], of: tuple[float, float], floor: float) -> list[float]:
    """f of each success rate under Beta(α, β), within [floor, 1/floor]."""
    return [min(max(density(p, *of), floor), 1 / floor) for p in rates]


def shape(rates: Sequence[float]) -> tuple[float, float]:
    """(α, β) by the moments of success rates in [0, 1]; (1, 1), the even density, where they are all equal."""
    mean, variance = (fmean(rates), pvariance(rates)) if rates else (0.5, 0.0)
    if variance < 1e-12:
        return 1.0, 1.0
    c = max(mean * (1 - mean) / variance - 1, 0.0)
    return 1 + c * mean / 3, 1 + c * (1 - mean) / 3


def density(p: float, alpha: float, beta: float) -> float:
    """The density of Beta(α, β) at p in [0, 1]; α, β ≥ 1."""
    powers = _times_log(alpha - 1, p) + _times_log(beta - 1, 1 - p)
    log_norm = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    return math.exp(min(log_norm + powers, 700.0))  # a narrow one overflows before it is bounded


def _times_log(power: float, base: float) -> float:
    """power·log base, 0 where the power is."""
    return 0.0 if power == 0 else power * math.log(base) if base > 0 else -math.inf
