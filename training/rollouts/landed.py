"""Finished episodes that wait for the learner, and which of them make the next batch.

The definition. Landed episodes stand in the order in which they arrived. An episode of its own is complete at once; a
group is complete when none of its members is expected any more, and stands where the last of them arrived. The next
batch is the shortest beginning of that order that is large enough: no group is cut, so it may bring more than wanted.
A tree lands as a whole, as one episode does, and is handed out as its leaves.

Walking all of that at each landing would cost O(n) an episode, O(n²) a step. Here every change costs O(log n): the size
of what is complete is a running sum, the members that a group still expects are a counter, and the order is a heap
whose outdated entries are skipped when they come up. `tests/training/rollouts/test_landed.py` has the definition
written out, and holds the two together.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

from solostream.agent.exploration.tree import leaves_of
from solostream.agent.trajectory import Trajectory
from solostream.training.rollouts.request import Finished, RolloutRequest


class Landed:
    """wanted: size of a batch, in units of `size`: what an episode or tree counts (trajectories, or action tokens).

    discards: whether a complete group is no part of any batch; it is asked once, and what it names is gone.
    """

    def __init__(
        self,
        wanted: int,
        size: Callable[[Finished], int],
        discards: Callable[[Sequence[Trajectory]], bool] | None = None,
    ) -> None:
        self._wanted = wanted
        self._size = size
        self._discards = discards

        # Everything that has landed and is not taken, by event.
        self._episodes: dict[int, tuple[RolloutRequest, Finished]] = {}

        # Groups: how many members are still queued or in flight, and those that are here, each with its arrival number.
        self._expected: dict[int, int] = {}  # group -> members
        self._members: dict[int, dict[int, int]] = {}  # group -> event -> arrival number

        # What is complete, each with the arrival number that it stands at.
        self._singles: dict[int, int] = {}  # event of an episode of its own -> its arrival number
        self._complete: dict[int, int] = {}  # complete group -> arrival number of its last member

        # (arrival, is a group, group or event) of everything complete. An entry counts while its arrival number is
        # still the one that `_singles` or `_complete` names; others are left over from a change.
        self._order: list[tuple[int, bool, int]] = []
        self._arrivals = 0
        self._ready = 0  # the size of everything complete

    def __len__(self) -> int:
        return len(self._episodes)

    def __iter__(self) -> Iterator[tuple[RolloutRequest, Finished]]:
        return iter(self._episodes.values())

    @property
    def ready(self) -> bool:
        """Whether `take` would find a batch."""
        return self._ready >= self._wanted

    def expect(self, request: RolloutRequest) -> None:
        """`request` will land or be given up: until then its group is not complete."""
        group = request.dispatch.group
        # An episode of its own waits for nobody.
        if group is None:
            return
        # One more member is to come, of a group that may have looked complete without it.
        self._reopen(group)
        self._expected[group] = self._expected.get(group, 0) + 1

    def give_up(self, request: RolloutRequest) -> None:
        """An expected episode will not come: its group may be complete without it."""
        if request.dispatch.group is not None:
            self._no_longer_expected(request.dispatch.group)

    def land(self, request: RolloutRequest, played: Finished) -> None:
        """An expected episode is here."""
        event = request.dispatch.event
        group = request.dispatch.group
        self._episodes[event] = request, played
        self._arrivals += 1
        # An episode of its own is complete at once; a group may be with this member, or may go on waiting.
        if group is None:
            self._singles[event] = self._arrivals
            heapq.heappush(self._order, (self._arrivals, False, event))
            self._ready += self._size(played)
        else:
            self._members.setdefault(group, {})[event] = self._arrivals
            self._no_longer_expected(group)

    def remove(self, request: RolloutRequest) -> None:
        """A landed episode is not wanted any more; a group is judged by what is left of it."""
        event = request.dispatch.event
        group = request.dispatch.group
        if group is None:
            # Its entry in the order stays, and counts no longer: nothing names its arrival number any more.
            _, played = self._episodes[event]
            del self._singles[event]
            self._ready -= self._size(played)
        else:
            # Reopened while its size is still that of all members, closed again at the size of those that are left.
            was_complete = self._reopen(group)
            del self._members[group][event]
            if was_complete:
                self._close(group)
        del self._episodes[event]

    def take(self) -> list[Trajectory] | None:
        """The next batch, which is then gone from here; None while there is not enough."""
        if not self.ready:
            return None
        batch: list[Trajectory] = []
        found = 0
        # From the front of the order; the last group is taken whole, so `found` may end above what was wanted.
        while found < self._wanted:
            arrival, is_group, key = heapq.heappop(self._order)
            complete = self._complete if is_group else self._singles
            # An entry from before a change: the group was opened again, or the episode has gone.
            if complete.get(key) != arrival:
                continue
            del complete[key]
            events = list(self._members.pop(key)) if is_group else [key]

            # Nobody asks for these any more; a tree is handed out as its leaves.
            taken = [self._episodes.pop(event)[1] for event in events]
            found += sum(map(self._size, taken))
            for played in taken:
                batch += leaves_of(played)
        self._ready -= found
        return batch

    def _no_longer_expected(self, group: int) -> None:
        left = self._expected.pop(group) - 1
        # No entry means that nobody is expected: groups that are done leave nothing behind here.
        if left:
            self._expected[group] = left
            return
        # A complete group is judged once: it is part of a batch from now on, or gone.
        members = self._members.get(group)
        if members and self._discards is not None and self._discards(self._leaves(members)):
            for event in self._members.pop(group):
                del self._episodes[event]
        else:
            self._close(group)

    def _leaves(self, events: Iterable[int]) -> list[Trajectory]:
        return [leaf for event in events for leaf in leaves_of(self._episodes[event][1])]

    def _close(self, group: int) -> None:
        """Nobody is expected: what has landed of `group` may be taken."""
        members = self._members.get(group)
        # All of it was given up or removed: there is no group to take.
        if not members:
            self._members.pop(group, None)
            return
        # It stands where its last member arrived.
        last = max(members.values())
        self._complete[group] = last
        heapq.heappush(self._order, (last, True, group))
        self._ready += self._size_of(group)

    def _reopen(self, group: int) -> bool:
        """Take `group` out of what is complete; whether it was."""
        # Its entry in the order is left there, and skipped when it comes up.
        if self._complete.pop(group, None) is None:
            return False
        self._ready -= self._size_of(group)
        return True

    def _size_of(self, group: int) -> int:
        played = (self._episodes[event][1] for event in self._members[group])
        return sum(map(self._size, played))
