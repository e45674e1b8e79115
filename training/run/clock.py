"""The wall time of a run's work: from its beginning to now, earlier processes included, and the parts it consists of.

A moment belongs to the innermost phase that is open, or to `other`, so the parts add up to the whole. What a killed
process did after its last checkpoint is done again and counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

OTHER = "other"


class Clock:
    """`times`: of earlier processes, by phase. `now`: a monotonic clock in seconds; `started`: what it read then."""

    def __init__(
        self, times: Mapping[str, float], started: float, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._times, self._mark, self._now = dict(times), started, now
        self._open: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside counts to `name`, except what an inner phase takes."""
        self._lap()
        self._open.append(name)
        try:
            yield
        finally:
            self._lap()
            self._open.pop()

    def times(self) -> dict[str, float]:
        """Seconds by phase up to now, open phases included; they sum to the wall time."""
        self._lap()
        return dict(self._times)

    def _lap(self) -> None:
        now, phase = self._now(), self._open[-1] if self._open else OTHER
        self._times[phase] = self._times.get(phase, 0.0) + now - self._mark
        self._mark = now
