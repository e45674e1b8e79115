"""What came of what was drawn: the memory that curricula choose by.

By task (a form of a task is one of its own, `envs.data.forms`): how often it was tried and solved, and its last
rewards. By source: how many trajectories it brought, and the sizes |A| of its last advantages.
It is made and saved only for a sampler that asks for `history`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from solostream.envs.data.forms import base_of
from solostream.training.advantages.value_tracker import ValueTracker

RECENT = 8  # rewards of a task that are kept
WINDOW = 300  # advantages of a source (DUMP, arXiv 2504.09710)


class Outcome(NamedTuple):
    """One trajectory. size: the mean |A| of its action tokens."""

    task_id: str
    reward: float
    size: float


class OutcomeHistory:
    """sources: task id -> source, of the pool. tracker: where an advantage keeps one."""

    def __init__(self, sources: Mapping[str, str], tracker: ValueTracker | None = None) -> None:
        self.sources, self.tracker = sources, tracker
        self._tried: defaultdict[str, int] = defaultdict(int)
        self._solved: defaultdict[str, int] = defaultdict(int)
        self._rewards: dict[str, deque[float]] = {}
        self._drawn: defaultdict[str, int] = defaultdict(int)
        self._sizes: dict[str, deque[float]] = {}

    def learn(self, outcomes: Iterable[Outcome]) -> None:
        """Add what a batch has brought, in its order."""
        for task_id, reward, size in outcomes:
            self._tried[task_id] += 1
            self._solved[task_id] += reward > 0.5
            self._rewards.setdefault(task_id, deque(maxlen=RECENT)).append(reward)
            source = self.source(task_id)
            self._drawn[source] += 1
            self._sizes.setdefault(source, deque(maxlen=WINDOW)).append(size)

    def source(self, task_id: str) -> str:
        """Of the pool; that of a form is its problem's."""
        found = self.sources.get(task_id)
        return self.sources.get(base_of(task_id), "") if found is None else found

    def tried(self, task_id: str) -> int:
        """How many trajectories of it came back."""
        return self._tried.get(task_id, 0)

    def solved(self, task_id: str) -> int:
        """How many of these earned more than one half."""
        return self._solved.get(task_id, 0)

    def recent(self, task_id: str) -> list[float]:
        """Its last rewards, the newest last."""
        return list(self._rewards.get(task_id, ()))

    def value(self, task_id: str) -> float:
        """What it is expected to earn: the tracker's value; without a tracker the smoothed mean of the last rewards."""
        if self.tracker is not None:
            return self.tracker.value(task_id)
        recent = self.recent(task_id)
        return (sum(recent) + 0.5) / (len(recent) + 1)

    def drawn(self, source: str) -> int:
        """Trajectories that a source has brought since the start."""
        return self._drawn.get(source, 0)

    def size(self, source: str) -> float:
        """The mean |A| of a source's last trajectories; 0 before the first."""
        sizes = self._sizes.get(source)
        return fmean(sizes) if sizes else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the tracker's."""
        return {
            "tasks": {
                task_id: [n, self._solved.get(task_id, 0), list(self._rewards[task_id])]
                for task_id, n in self._tried.items()
            },
            "sources": {source: [n, list(self._sizes[source])] for source, n in self._drawn.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for task_id, (tried, solved, recent) in state["tasks"].items():
            self._tried[task_id], self._solved[task_id] = tried, solved
            self._rewards[task_id] = deque(recent, maxlen=RECENT)
        for source, (drawn, sizes) in state["sources"].items():
            self._drawn[source], self._sizes[source] = drawn, deque(sizes, maxlen=WINDOW)
