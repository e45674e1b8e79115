"""The pipeline against episodes whose timing the test decides."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from solostream.agent.engine import EngineError
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog, read_lines
from solostream.errors import SandboxError
from solostream.training.rollouts.collector import AsyncCollector, oldest_version, unused
from solostream.training.rollouts.request import PromptSource, RolloutRequest
from solostream.training.rollouts.sync_collector import SyncCollector
from solostream.training.run.rl_loop import clamp_versions


def episode(
    request: RolloutRequest, tokens: int = 2, version: int | None = None, ending: str = "answered"
) -> Trajectory:
    ledger = TokenRecord()
    ledger.add_observation("user", [1, 2], "hi")
    spoken = request.dispatch.version if version is None else version
    ledger.add_action([3] * tokens, [-0.5] * tokens, [spoken] * tokens, "x")
    return ledger.close(request.task_id, 1.0, ending, dispatch=request.dispatch, seed=request.seed)  # type: ignore[arg-type]


class Tickets:
    """Numbered requests; `gates` hold an episode until the test opens it."""

    def __init__(self, group: int = 1, first: int = 0) -> None:
        self.event, self.group, self.version = first, group, 0
        self.gates: dict[int, asyncio.Event] = {}
        self.started: list[int] = []

    def request(self, group: int | None = None) -> RolloutRequest:
        made = RolloutRequest(f"task-{self.event}", self.event, Dispatch(self.event, 0.5, self.version, group))
        self.event += 1
        return made

    def draw(self) -> list[RolloutRequest]:
        number = self.event // self.group
        return [self.request(number if self.group > 1 else None) for _ in range(self.group)]

    def again(self, old: RolloutRequest) -> RolloutRequest:
        return RolloutRequest(old.task_id, old.seed, self.request().dispatch)

    async def play(self, request: RolloutRequest) -> Trajectory:
        self.started.append(request.dispatch.event)
        gate = self.gates.setdefault(request.dispatch.event, asyncio.Event())
        await gate.wait()
        return episode(request)

    def open(self, *events: int) -> None:
        for event in events:
            self.gates.setdefault(event, asyncio.Event()).set()

    def source(
        self, play: Callable[[RolloutRequest], Awaitable[Trajectory]] | None = None, retries: int = 2
    ) -> PromptSource:
        return PromptSource(self.draw, self.again, play or self.play, retries)


@pytest.fixture
def log(tmp_path: Path):
    made = TrajectoryLog(tmp_path / "trajectories.jsonl")
    yield made
    made.close()


def events(batch: list[Trajectory]) -> list[int]:
    return [t.dispatch.event for t in batch]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # several things may make it so
            await asyncio.sleep(0.001)


async def test_the_first_to_finish_are_the_batch_and_the_stragglers_go_on(log: TrajectoryLog) -> None:
    requests = Tickets()
    streams = AsyncCollector(requests.source(), log, batch=2, in_flight=4, max_staleness=9)
    requests.open(3, 1)
    first = await streams.take()
    assert sorted(events(first)) == [1, 3]
    streams.advance(1)
    requests.open(0, 2)
    assert sorted(events(await streams.take())) == [0, 2]  # never restarted
    assert requests.started.count(0) == 1
    await streams.close()


async def test_a_token_budget_ends_the_batch(log: TrajectoryLog) -> None:
    requests = Tickets()

    async def play(request: RolloutRequest) -> Trajectory:
        return episode(request, tokens=3)

    streams = AsyncCollector(requests.source(play), log, batch=2, tokens=10, in_flight=2, max_staleness=9)
    batch = await streams.take()
    assert (
        sum(t.n_action_tokens for t in batch) == 12
    )  # the fourth brings the tenth token, though only two fit in flight
    await streams.close()


async def test_outstanding_episodes_are_bounded(log: TrajectoryLog) -> None:
    requests = Tickets()
    streams = AsyncCollector(requests.source(), log, batch=2, in_flight=3, max_staleness=9)
    requests.open(*range(100))
    await streams.take()
    for _ in range(50):  # nobody takes: the rest must not run ahead
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert requests.event <= 2 + 3
    await streams.close()


@pytest.mark.parametrize("stale", ["drop", "redispatch"])
async def test_too_old_episodes_are_counted_and_never_trained_on(log: TrajectoryLog, stale: str) -> None:
    requests = Tickets()
    streams = AsyncCollector(requests.source(), log, batch=1, in_flight=3, max_staleness=1, stale=stale)  # type: ignore[arg-type]
    requests.open(0)
    assert events(await streams.take()) == [0]
    for version in (1, 2):
        requests.version = version
        streams.advance(version)
    assert streams.counts["stale"] == 3  # events 1, 2 and the refill 3, all dispatched under version 0
    requests.open(*range(1, 40))
    batch = await streams.take()
    assert oldest_version(batch[0]) == 2
    if stale == "redispatch":
        assert batch[0].task_id in {"task-1", "task-2", "task-3"}
    await streams.close()


async def test_a_group_is_taken_whole(log: TrajectoryLog) -> None:
    requests = Tickets(group=2)
    streams = AsyncCollector(requests.source(), log, batch=2, in_flight=4, max_staleness=9)
    requests.open(0, 3)
    taking = asyncio.create_task(streams.take())
    await asyncio.sleep(0.05)
    assert not taking.done()  # two have landed, of two groups
    requests.open(2)
    assert sorted(events(await taking)) == [2, 3]
    await streams.close()


async def test_a_group_that_lost_a_member_cuts_no_other(log: TrajectoryLog) -> None:
    """Four were asked for: 0 of the first group, both of the second and both of the third are five."""
    requests = Tickets(group=2)

    async def play(request: RolloutRequest) -> Trajectory:
        if request.dispatch.event == 1:
            raise SandboxError("gone")
        return episode(request)

    for budget in ({"batch": 4}, {"batch": 1, "tokens": 8}):
        requests.event = 0
        streams = AsyncCollector(requests.source(play, retries=0), log, in_flight=6, max_staleness=9, **budget)
        batch = await streams.take()
        groups = Counter(t.dispatch.group for t in batch)
        assert sorted(groups.values()) == [1, 2, 2]
        await streams.close()


async def test_tokens_of_a_killed_process_do_not_pass_for_those_of_the_current_policy() -> None:
    ledger = TokenRecord()
    ledger.add_observation("user", [1, 2], "hi")
    ledger.add_action([3, 3, 3], [-0.5] * 3, [18, 20, 23], "x")
    logged = ledger.close("a", 1.0, "answered", dispatch=Dispatch(7, 0.5, 22))
    resumed = clamp_versions(logged, 20)
    assert resumed.versions[resumed.action_mask].tolist() == [18, 20, 19]
    assert resumed.dispatch == Dispatch(7, 0.5, 20)
    assert clamp_versions(logged, 23).to_dict() == logged.to_dict()


async def test_infrastructure_failures_are_retried_then_dropped_and_counted(log: TrajectoryLog) -> None:
    requests = Tickets()
    tries: dict[int, int] = {}

    async def play(request: RolloutRequest) -> Trajectory:
        event = request.dispatch.event
        tries[event] = tries.get(event, 0) + 1
        if event == 0:
            raise SandboxError("always")
        if event == 1 and tries[event] == 1:
            raise EngineError("once")
        if event == 2 and tries[event] == 1:
            return episode(request, ending="infra")
        return episode(request)

    streams = AsyncCollector(requests.source(play), log, batch=3, in_flight=3, max_staleness=9)
    assert 0 not in events(await streams.take())
    assert tries[0] == 3
    assert streams.counts == {"infra_failures": 5, "infra_dropped": 1, "engine_failures": 1}
    await streams.close()


async def test_when_nothing_works_the_run_stops_and_says_why(log: TrajectoryLog) -> None:
    async def play(request: RolloutRequest) -> Trajectory:
        raise SandboxError("the daemon is down")

    requests = Tickets()
    streams = AsyncCollector(requests.source(play, retries=0), log, batch=2, in_flight=4, max_staleness=9)
    with pytest.raises(SandboxError, match=r"4 episodes in a row .* the daemon is down"):
        await asyncio.wait_for(streams.take(), 5)
    await streams.close()


async def test_a_round_is_in_the_order_of_dispatch(log: TrajectoryLog) -> None:
    requests = Tickets()
    rounds = SyncCollector(requests.source(), log, batch=3)
    taking = asyncio.create_task(rounds.take())
    for event in (2, 0, 1):
        requests.open(event)
        await asyncio.sleep(0)
    assert events(await taking) == [0, 1, 2]


async def test_an_interrupted_round_runs_again_with_the_same_tickets(log: TrajectoryLog) -> None:
    requests = Tickets()
    rounds = SyncCollector(requests.source(), log, batch=2)
    requests.open(0)
    taking = asyncio.create_task(rounds.take())
    await asyncio.sleep(0.02)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    state = json.loads(json.dumps(rounds.state_dict()))
    requests.open(1)
    resumed = SyncCollector(Tickets(first=2).source(episode_now), log, batch=2)
    resumed.restore(state, [])
    assert events(await resumed.take()) == [0, 1]


async def test_in_lockstep_a_batch_is_sampled_while_the_last_is_learned_and_settles_before_weights_move(
    log: TrajectoryLog,
) -> None:
    requests = Tickets()
    lockstep = SyncCollector(requests.source(), log, batch=2, overlap=True)
    requests.open(0)
    requests.open(1)
    assert events(await lockstep.take()) == [0, 1]
    settling = asyncio.create_task(lockstep.settle())
    requests.open(3)
    await asyncio.sleep(0.02)
    assert not settling.done()  # event 2 is still sampled, under the weights that it began with
    requests.open(2)
    await asyncio.wait_for(settling, 5)
    assert [line.trajectory.dispatch.event for line in read_lines(log.path) if line.trajectory] == [0, 1, 2, 3]
    state = json.loads(json.dumps(lockstep.state_dict()))
    await lockstep.close()

    played: list[int] = []

    async def play(request: RolloutRequest) -> Trajectory:
        played.append(request.dispatch.event)
        return episode(request)

    resumed = SyncCollector(Tickets(first=4).source(play), log, batch=2, overlap=True)
    logged = [line.trajectory for line in read_lines(log.path) if line.trajectory]
    resumed.restore(state, unused(logged, 4, state))
    assert events(await resumed.take()) == [2, 3]
    await resumed.settle()
    assert played == [4, 5]  # what the log held was not sampled again
    await resumed.close()


async def episode_now(request: RolloutRequest) -> Trajectory:
    return episode(request)


async def test_killed_anywhere_no_finished_trajectory_is_lost_or_used_twice(tmp_path: Path) -> None:
    """Random timings, checkpoints and kills; the trained events of the surviving timeline are checked one by one."""
    path = tmp_path / "trajectories.jsonl"
    rng = random.Random(0)

    async def play(request: RolloutRequest) -> Trajectory:
        await asyncio.sleep(rng.expovariate(2000))
        return episode(request)

    trained: list[int] = []
    saved: tuple[dict, int, list[int]] = ({"outstanding": []}, 0, [])
    for _life in range(12):
        state, next_event, trained = saved[0], saved[1], list(saved[2])
        log = TrajectoryLog(path)
        logged = [line.trajectory for line in read_lines(path) if line.trajectory]
        finished = unused(logged, next_event, state)
        requests = Tickets(first=max([next_event, *(t.dispatch.event + 1 for t in logged)]))
        streams = AsyncCollector(requests.source(play), log, batch=5, in_flight=9, max_staleness=99)
        streams.restore(state, finished)
        for _step in range(rng.randint(1, 5)):
            batch = events(await streams.take())
            assert not set(batch) & set(trained)
            trained += batch
            if rng.random() < 0.5:
                saved = json.loads(json.dumps(streams.state_dict())), requests.event, list(trained)
        await streams.close()  # as a kill: what is not in the checkpoint or the log is gone
        log.close()
        path.write_bytes(path.read_bytes() + b'{"task_id": "torn')
    # One last life that only takes what is left: everything that ever finished has been trained on exactly once.
    state, next_event, trained = saved
    logged = [line.trajectory for line in read_lines(path) if line.trajectory]
    assert len(logged) == len({t.dispatch.event for t in logged})
    left = [t.dispatch.event for t in unused(logged, next_event, state)]
    assert sorted(left + trained) == sorted({t.dispatch.event for t in logged})


async def test_a_reward_that_stopped_the_run_does_not_stop_the_resumed_one(log: TrajectoryLog) -> None:
    """Event 0 was outstanding at the checkpoint and is run again; 2, dispatched since, is given up; 1 is kept."""
    requests = Tickets()
    first, second = requests.request(), requests.request()
    bad, good = replace(episode(first), reward=float("nan")), episode(second)
    later = replace(episode(requests.request()), reward=float("inf"))
    state = {"outstanding": [first.to_dict(), second.to_dict()]}
    finished = unused([bad, good, later], 2, state)
    assert events(finished) == [1]
    resumed = AsyncCollector(Tickets(first=3).source(episode_now), log, batch=2, in_flight=2, max_staleness=9)
    resumed.restore(state, finished)
    assert sorted(events(await resumed.take())) == [0, 1]
    await resumed.close()


@pytest.mark.parametrize("stale", ["drop", "redispatch"])
async def test_a_landed_episode_outlives_as_many_updates_as_its_oldest_token_may(
    log: TrajectoryLog, stale: Literal["drop", "redispatch"]
) -> None:
    """Dispatched under version 5 with a token of version 3; the two still in flight can be no older than 5."""
    requests = Tickets()
    requests.version = 5

    async def play(request: RolloutRequest) -> Trajectory:
        if request.dispatch.event == 0:
            return episode(request, version=3)
        return await requests.play(request)

    streams = AsyncCollector(requests.source(play), log, batch=2, in_flight=3, max_staleness=2, stale=stale)
    taking = asyncio.create_task(streams.take())
    await until(lambda: len(streams._landed) == 1)
    streams.advance(5)
    assert (streams.counts["stale"], streams.version) == (0, 5)
    streams.advance(6)
    assert (streams.counts["stale"], streams.version) == (1, 6)
    again = [request["task_id"] for request in streams.state_dict()["outstanding"]]
    assert again == ["task-1", "task-2"] + (["task-0"] if stale == "redispatch" else [])
    requests.open(1, 2)
    assert events(await asyncio.wait_for(taking, 60)) == [1, 2]
    await streams.close()


async def test_a_batch_that_waits_is_woken_when_all_in_flight_was_too_old(log: TrajectoryLog) -> None:
    requests = Tickets()
    streams = AsyncCollector(requests.source(), log, batch=1, in_flight=2, max_staleness=0)
    taking = asyncio.create_task(streams.take())
    await until(lambda: len(requests.started) == 2)
    requests.version = 1
    requests.open(2, 3)
    streams.advance(1)
    assert set(events(await asyncio.wait_for(taking, 60))) <= {2, 3}
    await streams.close()


async def test_a_finished_run_starts_nothing_and_remembers_what_was_on_its_way(log: TrajectoryLog) -> None:
    requests = Tickets(first=7)
    streams = AsyncCollector(requests.source(), log, batch=1, in_flight=3, max_staleness=9)
    taking = asyncio.create_task(streams.take())
    await until(lambda: len(requests.started) == 3)
    streams.finish()
    for _ in range(20):
        await asyncio.sleep(0)
    assert requests.started == [7, 8, 9]
    assert [record["dispatch"]["event"] for record in streams.state_dict()["outstanding"]] == [7, 8, 9]
    taking.cancel()
    await streams.close()


async def test_closing_waits_until_every_episode_has_cleaned_up(log: TrajectoryLog) -> None:
    cleaned: list[int] = []
    requests = Tickets()

    async def play(request: RolloutRequest) -> Trajectory:
        try:
            return await requests.play(request)
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.append(request.dispatch.event)

    streams = AsyncCollector(requests.source(play), log, batch=1, in_flight=2, max_staleness=9)
    taking = asyncio.create_task(streams.take())
    await until(lambda: len(requests.started) == 2)
    await streams.close()
    assert sorted(cleaned) == [0, 1]
    taking.cancel()


async def test_a_resumed_episode_keeps_its_seed(log: TrajectoryLog) -> None:
    """Of the one that had finished too: should it become too old, its task runs again from the same seed."""
    requests = Tickets(first=41)
    first, second = requests.request(), requests.request()
    state = {"outstanding": [first.to_dict(), second.to_dict()]}
    resumed = AsyncCollector(requests.source(), log, batch=2, in_flight=2, max_staleness=9)
    resumed.restore(state, [episode(first)])
    assert resumed.state_dict() == state


async def test_busy_from_the_first_departure_to_the_last_arrival(
    log: TrajectoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("solostream.training.rollouts.collector.time", SimpleNamespace(monotonic=lambda: now))
    requests = Tickets()
    streams = AsyncCollector(requests.source(), log, batch=2, in_flight=2, max_staleness=9)
    assert streams.busy_s == 0
    taking = asyncio.create_task(streams.take())
    await until(lambda: len(requests.started) == 2)
    now = 103.0
    requests.open(0)
    await until(lambda: len(streams._landed) == 1)
    now = 107.0
    requests.open(1)
    assert events(await taking) == [0, 1]
    now = 110.0
    assert streams.busy_s == 10  # 7 of the first two, 3 of the two that replaced them
    streams.finish()
    now = 120.0
    assert streams.busy_s == 10
    await streams.close()
