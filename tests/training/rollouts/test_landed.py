"""The next batch, held against its definition written out: any order of arrival, groups, drops, dispatches anew."""

from __future__ import annotations

import random

import pytest
from tiny_ledgers import trajectory

from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.training.rollouts.landed import Landed
from solostream.training.rollouts.request import RolloutRequest


class Definition:
    """`Landed` by walking everything at every question."""

    def __init__(self, wanted: int, size) -> None:
        self.wanted, self.size = wanted, size
        self.outstanding: list[RolloutRequest] = []
        self.landed: list[tuple[RolloutRequest, Trajectory]] = []  # in order of arrival

    def units(self) -> list[list[Trajectory]]:
        """Complete episodes and groups, each where its last member arrived."""
        open_groups = {request.dispatch.group for request in self.outstanding}
        units: list[tuple[int, list[Trajectory]]] = []
        groups = {request.dispatch.group for request, _ in self.landed} - {None}
        for place, (request, one) in enumerate(self.landed):
            if request.dispatch.group is None:
                units.append((place, [one]))
        for group in groups - open_groups:
            places = [i for i, (request, _) in enumerate(self.landed) if request.dispatch.group == group]
            units.append((places[-1], [self.landed[i][1] for i in places]))
        return [members for _, members in sorted(units, key=lambda unit: unit[0])]

    def take(self) -> list[Trajectory] | None:
        batch: list[Trajectory] = []
        for members in self.units():
            batch += members
            if sum(map(self.size, batch)) >= self.wanted:
                self.landed = [pair for pair in self.landed if pair[1] not in batch]
                return batch
        return None


def requests(rng: random.Random, event: int) -> list[RolloutRequest]:
    """A prompt with one stream, or a group of two to five."""
    streams = rng.choice([1, 1, 2, 3, 5])
    group = None if streams == 1 else event
    return [RolloutRequest(f"t{event}", 0, Dispatch(event + i, 0.5, 0, group)) for i in range(streams)]


@pytest.mark.parametrize("by_tokens", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_any_history_gives_the_batches_of_the_definition(seed: int, by_tokens: bool) -> None:
    rng = random.Random(seed)
    size = (lambda t: t.n_action_tokens) if by_tokens else (lambda t: 1)
    wanted = rng.choice([1, 7, 23]) * (5 if by_tokens else 1)
    fast, slow = Landed(wanted, size), Definition(wanted, size)
    event, taken = 0, 0
    for _ in range(600):
        move = rng.random()
        if move < 0.25 or not slow.outstanding:
            for request in requests(rng, event):
                fast.expect(request)
                slow.outstanding.append(request)
                event = request.dispatch.event + 1
        elif move < 0.75:
            request = slow.outstanding.pop(rng.randrange(len(slow.outstanding)))
            one = trajectory(request.task_id, event=request.dispatch.event, response=range(rng.randint(1, 9)))
            fast.land(request, one)
            slow.landed.append((request, one))
        elif move < 0.85:
            fast.give_up(slow.outstanding.pop(rng.randrange(len(slow.outstanding))))
        elif slow.landed:  # too old: removed, and every other time asked for again in its group
            request, _ = slow.landed.pop(rng.randrange(len(slow.landed)))
            fast.remove(request)
            if rng.random() < 0.5:
                again = RolloutRequest(request.task_id, 0, Dispatch(event, 0.5, 1, request.dispatch.group))
                event += 1
                fast.expect(again)
                slow.outstanding.append(again)
        assert len(fast) == len(slow.landed)
        expected = slow.take() if rng.random() < 0.5 else None
        if expected is not None:
            taken += 1
            assert fast.ready
            assert [t.dispatch.event for t in fast.take()] == [t.dispatch.event for t in expected]
        elif slow.units() == []:
            assert not fast.ready
    assert taken >= 4


def test_not_ready_means_none() -> None:
    landed = Landed(3, lambda t: 1)
    for event in range(2):
        request = RolloutRequest("a", 0, Dispatch(event))
        landed.expect(request)
        landed.land(request, trajectory("a", event=event))
        assert landed.take() is None
