"""Trees in the collectors: whole in batches, in the log, when they age, and when a run goes on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from solostream.agent.exploration.tree import Branch, Tree
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog, read_lines
from solostream.errors import SandboxError
from solostream.training.rollouts.collector import AsyncCollector, unused
from solostream.training.rollouts.request import PromptSource, RolloutRequest
from solostream.training.rollouts.sync_collector import SyncCollector

LEAVES = 3


def grown(request: RolloutRequest, versions: tuple[int, ...] = (0, 0, 0)) -> Tree:
    """Leaf 1 shares four of its six sampled tokens with leaf 0; leaf 2 is a trunk of its own."""
    leaves = []
    for i, (path, forks) in enumerate((((0,), ()), ((0, 1), (6,)), ((2,), ()))):
        ledger = TokenRecord()
        ledger.add_observation("user", [1, 2], "hi")
        ledger.add_action([3] * 6, [-0.5] * 6, [versions[i]] * 6, "x")
        dispatch = replace(request.dispatch, event=request.dispatch.event + i)
        branch = Branch(request.dispatch.event, LEAVES, path, forks)
        leaves.append(ledger.close(request.task_id, 1.0, "answered", dispatch=dispatch, seed=i, branch=branch))
    return Tree(tuple(leaves), (True,) * LEAVES)


class Trees:
    """Requests whose events are three apart; `gates` hold a tree until the test opens it."""

    def __init__(self, first: int = 0) -> None:
        self.event, self.version = first, 0
        self.gates: dict[int, asyncio.Event] = {}
        self.started: list[int] = []
        self.failing: set[int] = set()

    def draw(self) -> list[RolloutRequest]:
        made = RolloutRequest("task", self.event, Dispatch(self.event, 0.5, self.version, self.event // LEAVES))
        self.event += LEAVES
        return [made]

    async def play(self, request: RolloutRequest) -> Tree:
        event = request.dispatch.event
        self.started.append(event)
        await self.gates.setdefault(event, asyncio.Event()).wait()
        if event in self.failing:
            raise SandboxError("gone")
        return grown(request, (request.dispatch.version,) * LEAVES)

    def open(self, *events: int) -> None:
        for event in events:
            self.gates.setdefault(event, asyncio.Event()).set()

    def source(self, retries: int = 0) -> PromptSource:
        return PromptSource(self.draw, lambda old: self.draw()[0], self.play, retries, leaves=LEAVES)


@pytest.fixture
def log(tmp_path: Path):
    made = TrajectoryLog(tmp_path / "trajectories.jsonl")
    yield made
    made.close()


def events(batch: list[Trajectory]) -> list[int]:
    return [t.dispatch.event for t in batch]


async def test_a_batch_is_made_of_whole_trees_and_counts_leaves(log: TrajectoryLog) -> None:
    trees = Trees()
    streams = AsyncCollector(trees.source(), log, batch=4, in_flight=9, max_staleness=9)
    trees.open(3, 6)
    taking = asyncio.create_task(streams.take())
    batch = await taking
    assert sorted(events(batch)) == [3, 4, 5, 6, 7, 8]  # two trees: four leaves are more than one has
    assert sorted(trees.started[:3]) == [0, 3, 6]  # nine leaves in flight are three trees
    await streams.close()


async def test_tokens_that_leaves_share_count_once(log: TrajectoryLog) -> None:
    trees = Trees()
    trees.open(*range(0, 90, LEAVES))
    # A tree holds 18 action tokens, of which 14 were sampled.
    streams = AsyncCollector(trees.source(), log, batch=3, tokens=15, in_flight=3, max_staleness=9)
    assert len(await streams.take()) == 2 * LEAVES
    await streams.close()


async def test_a_tree_ages_as_a_whole(log: TrajectoryLog) -> None:
    trees = Trees()
    streams = AsyncCollector(trees.source(), log, batch=6, in_flight=6, max_staleness=1)
    taking = asyncio.create_task(streams.take())
    trees.open(0)
    async with asyncio.timeout(60):
        while len(list(read_lines(log.path))) < LEAVES:  # noqa: ASYNC110  # a file tells nobody
            await asyncio.sleep(0.001)
    trees.version = 2
    streams.advance(2)  # the tree that has landed and the one in flight are too old, with every leaf
    assert streams.counts["stale"] == 2
    trees.open(6, 9, 12)
    assert sorted(events(await taking)) == [6, 7, 8, 9, 10, 11]
    await streams.close()


async def test_one_failed_leaf_is_a_failed_tree_that_is_tried_again_and_then_dropped(log: TrajectoryLog) -> None:
    trees = Trees()
    trees.failing = {0}
    trees.open(*range(0, 90, LEAVES))
    rounds = SyncCollector(trees.source(retries=1), log, batch=6)
    assert events(await rounds.take()) == [3, 4, 5]
    assert trees.started.count(0) == 2
    assert rounds.counts["infra_dropped"] == 1


async def test_a_run_that_goes_on_trains_on_whole_trees_once(log: TrajectoryLog) -> None:
    trees = Trees()
    streams = AsyncCollector(trees.source(), log, batch=3, in_flight=9, max_staleness=9)
    trees.open(3)
    assert events(await streams.take()) == [3, 4, 5]
    state, next_event = streams.state_dict(), trees.event
    assert sorted(one["dispatch"]["event"] for one in state["outstanding"]) == [0, 6, 9]
    await streams.close()
    # After the checkpoint two trees were written before the process was killed, the second of them in part.
    whole, torn = (grown(RolloutRequest("task", 0, Dispatch(at, 0.5, 0, at // 3))) for at in (6, 9))
    await log.append(*whole.leaves, *torn.leaves[:2])

    finished = unused([line.trajectory for line in read_lines(log.path) if line.trajectory], next_event, state)
    assert events(finished) == [6, 7, 8]
    again = Trees(first=next_event)
    resumed = AsyncCollector(again.source(), log, batch=3, in_flight=9, max_staleness=9)
    resumed.restore(state, finished)
    assert events(await resumed.take()) == [6, 7, 8]
    again.open(0)
    assert events(await resumed.take()) == [0, 1, 2]
    again.open(9)
    assert events(await resumed.take()) == [9, 10, 11]  # played again as a whole
    await resumed.close()
