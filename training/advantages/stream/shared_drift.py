"""What all tasks have in common moves all values: v_x(q) = σ(logit v_x + b(q) − b(q_x)).

q is the policy's version, q_x the one of the task's last evidence; b is tracked from the residuals of whole batches, so
a value is fresh without a visit. Per batch, one damped Newton step of the logistic likelihood on r against v, the value
of the moment at which the batch is learnt (not of its dispatch: a lag that is mended already must not count again):

    Δb = rate·Σ(r − v)/max(Σ v(1 − v), 2)
    Δb_source = Δb + rate·(what is left within the source)/(Σ_source v(1 − v) + 2)

within ±1. The 2 is worth eight outcomes at v = ½: a source that has few stays with the others, and where all values are
at an edge and right b comes to rest. (Without it, both sums go to 0 in step, and b falls by the rate for as long as
nothing is solved: it then takes as many batches to come back.)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PRIOR = 2.0
LARGEST = 1.0  # change of a logit, a batch
EDGE = 1e-3  # of a value that is moved, before and after: beyond it a logit is noise
FAR = math.log((1 - EDGE) / EDGE)


class SharedDrift:
    """b by source, as sums up to each version. rate: in (0, 1], how much of a batch's residual is believed."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._versions: dict[str, list[int]] = {}  # "" is all tasks together, for a source without evidence
        self._sums: dict[str, list[float]] = {}

    def moved(self, value: float, source: str, last: int | None, now: int | None) -> float:
        """A value of version `last`, as of version `now` (None: the newest)."""
        if last is None:
            return value
        shift = self._at(source, now) - self._at(source, last)
        return _sigmoid(min(max(_logit(value) + shift, -FAR), FAR)) if shift else value

    def update(self, version: int, residuals: Iterable[tuple[str, float, float]]) -> None:
        """One batch, dispatched up to `version`: (source, r, v) of each trajectory."""
        errors: dict[str, float] = defaultdict(float)
        spreads: dict[str, float] = defaultdict(float)
        for source, r, v in residuals:
            for name in {source, ""}:
                errors[name] += r - v
                spreads[name] += v * (1 - v)
        common = self.rate * errors[""] / max(spreads[""], PRIOR)
        own = {
            source: common + self.rate * (errors[source] - common / self.rate * spread) / (spread + PRIOR)
            for source, spread in spreads.items()
            if source
        }
        for source in own.keys() - self._versions.keys():  # until now it went with all the others
            self._sums[source] = list(self._sums.get("", ()))  # first: another thread reads by the versions
            self._versions[source] = list(self._versions.get("", ()))
        for source in {*self._versions, ""}:
            self._add(source, version, min(max(own.get(source, common), -LARGEST), LARGEST))

    def _add(self, source: str, version: int, step: float) -> None:
        versions, sums = self._versions.setdefault(source, []), self._sums.setdefault(source, [])
        total = (sums[-1] if sums else 0.0) + step
        if versions and versions[-1] >= version:  # a second batch of one version
            sums[-1] = total
        else:
            sums.append(total)
            versions.append(version)

    def _at(self, source: str, version: int | None) -> float:
        name = source if source in self._versions else ""
        sums = self._sums.get(name)
        if not sums:
            return 0.0
        place = len(sums) if version is None else bisect_right(self._versions[name], version)
        return sums[place - 1] if place else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"versions": _copy(self._versions), "sums": _copy(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._versions, self._sums = _copy(state["versions"]), _copy(state["sums"])


def _copy(lists: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in lists.items()}


def _logit(value: float) -> float:
    value = min(max(value, EDGE), 1 - EDGE)
    return math.log(value / (1 - value))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
