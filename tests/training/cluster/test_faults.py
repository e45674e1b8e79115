"""Processes and machines that go away and come, on a real Ray with simulated machines: nothing is lost or stands still.

Tests wait for events (files that the processes write, calls that return), never for a time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from light_actors import FilePlayer, OpenFileEngine

from solostream.agent.engine import EngineError, Generation, Sampling
from solostream.agent.replicas import Replicas
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog, read_lines
from solostream.training.cluster import samplers
from solostream.training.cluster.handles import Dead, share
from solostream.training.cluster.placement import Placement, versions
from solostream.training.cluster.players import PlayerLost, Players
from solostream.training.cluster.samplers import SamplerReplica, by_memory, open_remote
from solostream.training.config import Config
from solostream.training.config.cluster import ClusterConfig
from solostream.training.rollouts.collector import AsyncCollector
from solostream.training.rollouts.request import PromptSource, RolloutRequest

pytestmark = [
    pytest.mark.filterwarnings("ignore:none of the first"),  # the players' episodes hold no answer
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(280),
]


@pytest.fixture
def placement(ray_cluster: Any) -> Any:
    made = Placement(ClusterConfig(replicas=2))
    yield made
    made.close()


class Holder:
    """Made of something large."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def look(self) -> tuple[int, int]:  # else Ray makes a thread for every call that may be under way
        return os.getpid(), sum(self.data[::997])


async def test_what_is_made_of_something_large_is_restarted_as_often_as_it_dies(placement: Placement) -> None:
    actor = placement.actor(Holder, bytes(range(250)) * 4096, who="the holder")
    seen = set()
    for _ in range(3):  # Ray forgot what it was made of after the first restart
        while True:
            try:
                pid, total = await actor.call("look")
            except Dead:
                raise
            except EngineError:  # it is being started
                await asyncio.sleep(0.02)
                continue
            if pid not in seen:
                break
        assert total == sum((bytes(range(250)) * 4096)[::997])
        seen.add(pid)
        os.kill(pid, signal.SIGKILL)


class Fleet:
    """Replicas over two `SamplerReplica`s in processes of their own, and what one can do to them."""

    def __init__(self, placement: Placement, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.actors = [
            placement.actor(SamplerReplica, OpenFileEngine(folder, i), versions(), who=f"the replica {i}", **options)
            for i in range(2)
        ]
        self.replicas = Replicas([partial(open_remote, actor, share) for actor in self.actors], send=by_memory)

    def file(self, name: str) -> Path:
        return self.folder / name

    def kill(self, name: str) -> None:
        os.kill(int(self.file(f"pid-{name}").read_text()), signal.SIGKILL)

    async def load(self, version: int) -> None:
        """The weights of a version add up to ten times its number."""
        await self.replicas.load_weights({"w": torch.full((5,), 2.0 * version)}, version)

    async def turn(self, key: str, *prompt: int) -> Generation:
        return await self.replicas.generate(prompt, Sampling(4, seed=3, key=key))


@pytest.fixture
async def fleet(placement: Placement, tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(placement, tmp_path)
    await made.load(1)
    await until(lambda: made.replicas.n_open == 2)
    yield made
    await made.replicas.close()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what changes is in other processes
        await asyncio.sleep(0.02)


def said(prompt: int, version: int) -> tuple[list[int], list[int]]:
    return [(prompt * 7 + 3 + 10 * version) % 1009], [version]


async def both_sample(fleet: Fleet, version: int) -> None:
    """Each replica, asked for itself, samples from the weights of `version`: none is paused, none is behind."""
    await until(lambda: fleet.replicas.n_open == 2)
    for actor in fleet.actors:
        got = await actor.call("generate", torch.tensor([11]).numpy(), Sampling(4, seed=3))
        assert (got.token_ids, got.versions) == said(11, version)


async def test_a_replica_that_dies_before_weights_are_sent(fleet: Fleet) -> None:
    fleet.kill("0")
    await fleet.load(2)
    got = await fleet.turn("a", 4)
    assert (got.token_ids, got.versions) == said(4, 2)
    await both_sample(fleet, 2)


async def test_a_replica_that_dies_while_it_takes_weights(fleet: Fleet) -> None:
    fleet.file("hold-load-1").touch()
    loading = asyncio.ensure_future(fleet.load(2))
    await until(fleet.file("held-load-1").exists)
    survivor = await fleet.turn("a", 4)  # at replica 0, which has them already or samples from those before
    assert survivor.versions in ([1], [2])
    fleet.file("hold-load-1").unlink()
    fleet.file("hold-load-1").with_name("hold-load-0").touch()  # the other is not held up by what comes next either
    fleet.file("hold-load-0").unlink()
    fleet.kill("1")
    await loading
    assert (await fleet.turn("a", 4)).versions == [2]
    await both_sample(fleet, 2)


async def test_a_replica_that_dies_after_weights_were_sent_gives_its_turn_away(fleet: Fleet) -> None:
    await fleet.load(2)
    await fleet.turn("a", 1)  # at replica 0
    fleet.file("hold-turn-0").touch()
    turn = asyncio.ensure_future(fleet.turn("a", 1, 3))
    await until(fleet.file("held-turn-0").exists)
    fleet.kill("0")
    assert (await turn).token_ids == said(4, 2)[0]  # the other, from the same ledger and the same seed
    fleet.file("hold-turn-0").unlink()
    await both_sample(fleet, 2)


async def test_who_gives_a_turn_up_ends_it_in_the_other_process(fleet: Fleet) -> None:
    await fleet.turn("a", 1)
    fleet.file("hold-turn-0").touch()
    turn = asyncio.ensure_future(fleet.turn("a", 1, 3))
    await until(fleet.file("held-turn-0").exists)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    fleet.file("hold-turn-0").unlink()
    assert (await fleet.turn("a", 2)).token_ids == said(2, 1)[0]


class Playing:
    """A collector of the product's over two players, and its log."""

    def __init__(self, handles: list[Any], folder: Path) -> None:
        self.players = Players(Config(), handles)
        self.drawn = 0
        self.log = TrajectoryLog(folder / "trajectories.jsonl")
        source = PromptSource(self._draw, lambda request: request, self._play, 2)
        self.collector = AsyncCollector(source, self.log, batch=6, in_flight=9, max_staleness=4)

    def _draw(self) -> list[RolloutRequest]:
        self.drawn += 1
        return [RolloutRequest(f"t{self.drawn}", self.drawn, Dispatch(self.drawn - 1))]

    async def _play(self, request: RolloutRequest) -> Trajectory:
        sampling = self.players.sampling(1.0)
        return await self.players.grow(None, request.task_id, sampling, request.dispatch, request.seed)  # type: ignore[arg-type]

    async def batches(self, n: int) -> list[int]:
        return [t.dispatch.event for _ in range(n) for t in await self.collector.take()]

    async def close(self) -> None:
        await self.collector.close()
        await self.players.close()
        self.log.close()


async def test_a_player_that_dies_loses_no_episode_and_counts_none_twice(placement: Placement, tmp_path: Path) -> None:
    handles = [placement.actor(FilePlayer, tmp_path, i, who=f"the player {i}", lost=PlayerLost) for i in range(2)]
    playing = Playing(handles, tmp_path)
    used = await playing.batches(2)
    process = tmp_path / "pid-player-0"  # it may be up later than the batches of the other
    await until(lambda: process.exists() and process.read_text() != "")
    doomed = process.read_text()
    (tmp_path / "hold-play").write_text(doomed)
    taking = asyncio.ensure_future(playing.batches(3))
    await until((tmp_path / "held-play").exists)
    os.kill(int(doomed), signal.SIGKILL)
    used += await taking
    await until(lambda: all(seat.line for seat in playing.players._seats))
    used += await playing.batches(2)  # with both again
    await playing.close()
    logged = [line.trajectory.dispatch.event for line in read_lines(playing.log.path) if line.trajectory]
    assert len(used) == len(set(used)) == 42
    assert len(logged) == len(set(logged))
    assert set(used) <= set(logged)
    assert playing.collector.counts["infra_failures"] >= 1
    assert playing.collector.counts["infra_dropped"] == 0


async def test_a_machine_dies_with_a_replica_and_a_player_and_another_joins_late(
    ray_cluster: Any, placement: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "LOOK_S", 0.2)
    spare = {"num_cpus": 4, "resources": {"spare": 8}, "object_store_memory": 80 << 20, "include_dashboard": False}
    machine = ray_cluster.add_node(**spare)
    there: dict[str, Any] = {"resources": {"spare": 1}}
    moved = placement.actor(SamplerReplica, OpenFileEngine(tmp_path, 0), versions(), who="the replica 0", **there)
    stays = placement.actor(SamplerReplica, OpenFileEngine(tmp_path, 1), versions(), who="the replica 1")
    sampler = Replicas([partial(open_remote, one, share) for one in (moved, stays)], send=by_memory)
    players = Players(
        Config(),
        [
            placement.actor(FilePlayer, tmp_path, 0, who="the player 0", lost=PlayerLost, **there),
            placement.actor(FilePlayer, tmp_path, 1, who="the player 1", lost=PlayerLost),
        ],
    )

    async def turn() -> Generation:
        return await sampler.generate([4], Sampling(4, seed=3))

    async def episode(seed: int) -> Trajectory:
        while True:
            try:
                return await players.grow(None, "t", players.sampling(1.0), Dispatch(seed), seed)  # type: ignore[arg-type]
            except PlayerLost:  # what `RetryPolicy` does
                pass

    await sampler.load_weights({"w": torch.full((5,), 2.0)}, 1)
    await until(lambda: sampler.n_open == 2)
    assert [(await episode(i)).seed for i in range(4)] == [0, 1, 2, 3]
    first = (tmp_path / "pid-0").read_text()
    ray_cluster.remove_node(machine, allow_graceful=False)
    await sampler.load_weights({"w": torch.full((5,), 4.0)}, 2)  # does not wait for the machine
    assert (await turn()).versions == [2]
    assert [(await episode(i)).seed for i in range(4, 8)] == [4, 5, 6, 7]
    machine = ray_cluster.add_node(**spare)  # nobody tells the run
    await until(lambda: sampler.n_open == 2)
    await until(lambda: all(seat.line for seat in players._seats))
    assert (tmp_path / "pid-0").read_text() != first
    got = await moved.call("generate", torch.tensor([11]).numpy(), Sampling(4, seed=3))
    assert (got.token_ids, got.versions) == said(11, 2)
    announce_the_end_of(machine)  # as a spot machine's is: the replica leaves while everything still works
    await until(lambda: sampler.n_open == 1)
    assert (await turn()).token_ids == said(4, 2)[0]
    await sampler.close()
    await players.close()
    ray_cluster.remove_node(machine)


def announce_the_end_of(machine: Any) -> None:
    """In five minutes; what `ray drain-node` does."""
    from ray import get_runtime_context
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = GcsClient(address=get_runtime_context().gcs_address)
    taken, why = client.drain_node(machine.node_id, reason, "spot", round(1000 * (time.time() + 300)))
    assert taken, why


async def test_a_replica_that_was_started_again_says_that_it_has_no_weights(
    placement: Placement, tmp_path: Path
) -> None:
    actor = placement.actor(SamplerReplica, OpenFileEngine(tmp_path, 0), versions(), who="the replica 0")
    with pytest.raises(EngineError, match="no weights yet"):
        await actor.call("generate", torch.tensor([1]).numpy(), Sampling(1))
    other = placement.actor(SamplerReplica, OpenFileEngine(tmp_path, 0), {"Python": "2.7"}, who="the replica 1")
    with pytest.raises(EngineError, match=r"this machine has .*, the run \{'Python': '2\.7'\}: install the same"):
        await other.call("open")


async def test_what_a_run_has_to_wait_for_is_said(placement: Placement) -> None:
    assert placement.lacks(cpus=24, gpus=0) is None
    assert placement.lacks(cpus=25, gpus=3) == (
        "the run wants 25 CPUs of 24, 3 GPUs of 0: what finds no place waits for a machine to join"
    )
