"""Dynamic sampling: batches of informative groups, what is left out is counted, a resumed run is the same."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_collector import Tickets, episode

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import TrajectoryLog, read_lines
from solostream.errors import UserError
from solostream.training.config import assign, validate
from solostream.training.rollouts.collector import AsyncCollector, unused
from solostream.training.rollouts.dynamic_sampling import DynamicSampling, informative
from solostream.training.rollouts.request import RolloutRequest
from solostream.training.rollouts.sync_collector import SyncCollector

# Group g answers as PATTERN[g % 5] says: of five groups two are informative.
PATTERN = [(1, 1, 1), (0, 1, 0), (0, 0, 0), (0.5, 0.5, 0.5), (1, 0, 1)]


def reward_of(request: RolloutRequest) -> float:
    return float(PATTERN[request.dispatch.group % 5][request.dispatch.event % 3])


async def play(request: RolloutRequest) -> Trajectory:
    return replace(episode(request, tokens=1 + request.dispatch.event % 2), reward=reward_of(request))


def groups(batch: list[Trajectory]) -> list[int]:
    return sorted({t.dispatch.group for t in batch})


@pytest.fixture
def log(tmp_path: Path):
    made = TrajectoryLog(tmp_path / "trajectories.jsonl")
    yield made
    made.close()


def test_a_group_is_informative_when_what_is_kept_of_it_differs() -> None:
    one, other = (replace(episode(Tickets(3).draw()[0]), reward=r) for r in (0.0, 0.25))
    assert informative([one, other, one])
    assert not informative([one, one])
    assert not informative([other])  # nothing to compare with
    assert not informative([one, other, one], kept=lambda group: [True, False, True])


async def test_a_synchronous_batch_is_filled_with_informative_groups(log: TrajectoryLog) -> None:
    told: list[Trajectory] = []
    source = replace(Tickets(3).source(play), discarded=told.extend)
    rounds = SyncCollector(source, log, batch=6, dynamic=DynamicSampling(60))
    batch = await rounds.take()
    assert groups(batch) == [1, 4]
    assert len(batch) == 6
    assert groups(told) == [0, 2, 3]
    assert rounds.counts["uninformative"] == 9
    assert rounds.counts["uninformative_tokens"] == sum(t.n_action_tokens for t in told) > 9
    assert groups(await rounds.take()) == [6, 9]
    logged = [line.trajectory for line in read_lines(log.path) if line.trajectory]
    assert len(logged) == 30  # what was left out is in the log, too
    assert rounds.state_dict() == {"outstanding": []}


@pytest.mark.parametrize("limit", [6, 7, 8])  # of 7 and 8 the last trajectories make no whole group
async def test_no_more_than_the_limit_is_left_out(limit: int, log: TrajectoryLog) -> None:
    async def hopeless(request: RolloutRequest) -> Trajectory:
        return replace(episode(request), reward=0.0)

    rounds = SyncCollector(Tickets(3).source(hopeless), log, batch=6, dynamic=DynamicSampling(limit))
    assert groups(await rounds.take()) == [2, 3]
    assert groups(await rounds.take()) == [6, 7]  # each batch may leave out as many
    assert rounds.counts["uninformative"] == 12


async def test_a_round_that_was_cut_off_is_played_again_with_the_same_result(
    log: TrajectoryLog, tmp_path: Path
) -> None:
    requests = Tickets(3)
    reached = asyncio.Event()

    async def stuck(request: RolloutRequest) -> Trajectory:
        if request.dispatch.event == 8:  # of the second helping
            reached.set()
            await asyncio.Event().wait()
        return await play(request)

    told: list[Trajectory] = []
    source = replace(requests.source(stuck), discarded=told.extend)
    rounds = SyncCollector(source, log, batch=6, dynamic=DynamicSampling(60))
    taking = asyncio.create_task(rounds.take())
    await reached.wait()
    state = json.loads(json.dumps(rounds.state_dict()))
    taking.cancel()
    await rounds.close()
    assert [record["dispatch"]["event"] for record in state["outstanding"]] == list(range(9))
    assert told == []  # nothing of a round that does not count
    resumed = SyncCollector(Tickets(3, first=9).source(play), log, batch=6, dynamic=DynamicSampling(60))
    resumed.restore(state, [])
    again = await resumed.take()
    other = TrajectoryLog(tmp_path / "whole.jsonl")
    whole = await SyncCollector(Tickets(3).source(play), other, batch=6, dynamic=DynamicSampling(60)).take()
    other.close()
    assert again == whole


async def test_an_asynchronous_batch_has_informative_groups_only_and_its_places_are_filled_again(
    log: TrajectoryLog,
) -> None:
    told: list[Trajectory] = []
    source = replace(Tickets(3).source(play), discarded=told.extend)
    streams = AsyncCollector(source, log, batch=6, in_flight=9, max_staleness=99, dynamic=DynamicSampling(600))
    taken = [await streams.take() for _ in range(4)]
    assert all(group % 5 in (1, 4) for batch in taken for group in groups(batch))
    assert all(len(batch) >= 6 for batch in taken)
    assert streams.counts["uninformative"] == len(told) > 0
    assert not {t.dispatch.event for t in told} & {t.dispatch.event for batch in taken for t in batch}
    await streams.close()


@pytest.mark.parametrize("limit", [6, 8])
async def test_the_asynchronous_limit_holds_and_is_in_the_state(limit: int, log: TrajectoryLog) -> None:
    async def hopeless(request: RolloutRequest) -> Trajectory:
        return replace(episode(request), reward=0.0)

    streams = AsyncCollector(
        Tickets(3).source(hopeless), log, batch=6, in_flight=6, max_staleness=99, dynamic=DynamicSampling(limit)
    )
    assert len(await streams.take()) == 6
    assert streams.counts["uninformative"] == 6
    assert streams.state_dict()["discarded"] == 0
    await streams.close()


async def test_resumed_in_the_asynchronous_mode_nothing_left_out_comes_back(log: TrajectoryLog) -> None:
    """A checkpoint in the middle: what was discarded before it is neither played nor told again."""
    requests, told = Tickets(3), []
    source = replace(requests.source(play), discarded=told.extend)
    streams = AsyncCollector(source, log, batch=3, in_flight=9, max_staleness=99, dynamic=DynamicSampling(600))
    first = await streams.take()
    state = json.loads(json.dumps(streams.state_dict()))
    next_event, before = requests.event, [t.dispatch.event for t in told]
    second = await streams.take()
    await streams.close()
    logged = [line.trajectory for line in read_lines(log.path) if line.trajectory]

    again: list[Trajectory] = []
    resumed_source = replace(Tickets(3, first=requests.event).source(play), discarded=again.extend)
    resumed = AsyncCollector(resumed_source, log, batch=3, in_flight=9, max_staleness=99, dynamic=DynamicSampling(600))
    resumed.restore(state, unused(logged, next_event, state))
    third = await resumed.take()
    assert groups(third) == groups(second)
    assert not {t.dispatch.event for t in again} & set(before)
    assert not {t.dispatch.event for t in third} & {t.dispatch.event for t in first}
    await resumed.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["algorithm.dynamic_sampling=4"], "nothing here compares within groups"),
        (
            [
                "algorithm.advantage=grpo", "algorithm.group_size=2", "algorithm.dynamic_sampling=4",
                "rollout.mode=lockstep", "rollout.batch=4",
            ],
            "lockstep",
        ),
        (
            [
                "algorithm.advantage=grpo", "algorithm.group_size=4", "algorithm.dynamic_sampling=0.01",
                "rollout.batch=32",
            ],
            "discard 0 trajectories, less than one group of 4: set it to 0.125 or more",
        ),
    ],
)  # fmt: skip
def test_where_it_means_nothing_it_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(assign({}, settings))
