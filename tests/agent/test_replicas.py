"""Several engines as one: who is asked, what happens when one fails, is drained, or comes late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import torch

from solostream.agent.engine import EngineError, Generation, Sampling, Weights
from solostream.agent.engines.hf import HFEngine
from solostream.agent.engines.hf.forward import ModelForward
from solostream.agent.replicas import Leaving, Replicas
from solostream.errors import UserError
from solostream.training.config import BuildConfig
from solostream.training.run.model import build_model, build_tokenizer


class Echo:
    """An engine whose turn is a function of ledger and seed, and lasts until `go` is set."""

    def __init__(self) -> None:
        self.version = -1
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[str | None] = []
        self.released: list[str] = []
        self.poison: int | None = None  # a token of a prompt that kills it
        self.refuses_weights = self.closed = False

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.asked.append(sampling.key)
        await self.go.wait()
        if self.closed or self.poison in prompt_ids:
            raise EngineError("it broke")
        token = (sum(prompt_ids) + (sampling.seed or 0)) % 97
        return Generation([token], [-0.5], [self.version], "stop")

    async def release(self, key: str) -> None:
        self.released.append(key)

    async def load_weights(self, weights: Weights, version: int) -> None:
        if self.refuses_weights:
            raise EngineError("it did not take them")
        self.version = version

    async def close(self) -> None:
        self.closed = True


class Announced(Echo):
    """An engine that is told when its machine will go."""

    def __init__(self) -> None:
        super().__init__()
        self.patience_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def watch(self) -> None:
        raise Leaving("its machine will be taken away", await self.patience_s)


class Fleet:
    """`Replicas` over `n` engines, and every engine that was opened, by replica."""

    made = Echo

    def __init__(self, n: int, **options: int) -> None:
        self.opened: list[list[Echo]] = [[] for _ in range(n)]
        self.gates = [asyncio.Event() for _ in range(n)]
        for gate in self.gates:
            gate.set()
        self.replicas = Replicas([self._opener(i) for i in range(n)], **options)

    def _opener(self, i: int):
        async def open_engine() -> Echo:
            await self.gates[i].wait()
            self.opened[i].append(self.made())
            return self.opened[i][-1]

        return open_engine

    async def all_open(self) -> None:
        await until(lambda: self.replicas.n_open == len(self.opened))

    async def turn(self, prompt: Sequence[int], key: str | None = None, limit: int = 8, seed: int = 0) -> Generation:
        return await self.replicas.generate(prompt, Sampling(limit, seed=seed, key=key))


async def started(n: int, made: type[Echo] = Echo, **options: int) -> Fleet:
    fleet = Fleet(n, **options)
    fleet.made = made
    await fleet.replicas.load_weights({}, 3)
    await fleet.all_open()
    return fleet


async def until(true) -> None:
    while not true():  # noqa: ASYNC110 - what changes are tasks of this loop, which tell nobody
        await asyncio.sleep(0)


async def test_an_episode_stays_and_a_new_one_goes_to_the_fewest_outstanding_tokens() -> None:
    fleet = await started(3)
    engines = [opened[0] for opened in fleet.opened]
    for engine in engines:
        engine.go.clear()
    first = asyncio.gather(
        fleet.turn([1] * 50, "a", limit=10),  # 60 tokens outstanding at replica 0,
        fleet.turn([1] * 5, "b", limit=90),  # 95 at replica 1: the limit counts, the turn may become as long
        fleet.turn([1] * 30, "c", limit=29),  # 59 at replica 2,
        fleet.turn([1] * 2, "d", limit=2),  # which is the least, and then has 63;
        fleet.turn([1], "e", limit=1),  # so this goes to replica 0
    )
    await until(lambda: sum(len(engine.asked) for engine in engines) == 5)
    assert [engine.asked for engine in engines] == [["a", "e"], ["b"], ["c", "d"]]
    for engine in engines:
        engine.go.set()
    await first
    await asyncio.gather(*(fleet.turn([1], key) for key in "dcba"))
    assert [engine.asked[-len(set(engine.asked)) :] for engine in engines][1] == ["b"]
    assert "d" in engines[2].asked[2:]
    assert "a" in engines[0].asked[2:]
    await fleet.replicas.release("a")
    assert [engine.released for engine in engines] == [["a"], [], []]
    await fleet.turn([1], "f")  # all idle: the fewest episodes, which is one at 0 and at 1
    assert engines[0].asked[-1] == "f"
    await fleet.replicas.close()
    assert all(engine.closed for engine in engines)


async def test_a_branch_goes_where_its_beginning_is_cached_and_elsewhere_when_that_is_gone() -> None:
    fleet = await started(3)
    engines = [opened[0] for opened in fleet.opened]
    await asyncio.gather(*(fleet.turn([1] * (n + 1), key) for n, key in enumerate("abc")))
    where = next(engine for engine in engines if "b" in engine.asked)
    for key in ("b1", "b2"):
        await fleet.replicas.generate([1, 1, 5], Sampling(8, seed=0, key=key, parent="b"))
    assert where.asked == ["b", "b1", "b2"]
    where.poison = 9
    got = await fleet.replicas.generate([1, 1, 9], Sampling(8, seed=0, key="b3", parent="b"))
    assert got.token_ids == [11]
    assert sum("b3" in engine.asked for engine in engines if engine is not where) == 1
    await fleet.replicas.close()


async def test_a_failed_turn_goes_on_elsewhere_and_its_replica_comes_back_with_the_weights_of_now() -> None:
    fleet = await started(2)
    fleet.gates[0].clear()
    fleet.opened[0][0].poison = 11
    got = await fleet.turn([11, 5], "a", seed=4)  # the same turn, at the other
    assert (got.token_ids, got.versions) == ([20], [3])
    assert fleet.opened[0][0].closed
    assert fleet.opened[1][0].asked == ["a"]
    await fleet.replicas.load_weights({}, 4)  # while replica 0 is opened: the run does not wait for it
    assert fleet.opened[1][0].version == 4
    fleet.gates[0].set()
    await fleet.all_open()
    assert fleet.opened[0][1].version == 4
    await fleet.replicas.close()


async def test_weights_that_come_while_a_replica_opens_are_those_it_has() -> None:
    fleet = Fleet(2)
    fleet.gates[1].clear()
    for version in (7, 8, 8):
        await fleet.replicas.load_weights({}, version)
    fleet.gates[1].set()
    await fleet.all_open()
    assert [opened[0].version for opened in fleet.opened] == [8, 8]
    await asyncio.gather(*(fleet.turn([1], str(i)) for i in range(6)))
    assert [len(opened[0].asked) for opened in fleet.opened] == [3, 3]  # the late one has its share
    await fleet.replicas.close()


async def test_a_turn_that_breaks_two_replicas_breaks_no_third() -> None:
    fleet = await started(3)
    for opened in fleet.opened:
        opened[0].poison = 13
    with pytest.raises(EngineError, match="it broke"):
        await fleet.turn([13])
    await fleet.all_open()
    assert [[engine.closed for engine in opened] for opened in fleet.opened] == [[True, False], [True, False], [False]]
    assert [opened[-1].version for opened in fleet.opened] == [3, 3, 3]
    await fleet.replicas.close()


async def test_a_replica_that_does_not_take_the_weights_is_opened_again_and_the_others_go_on() -> None:
    fleet = await started(3)
    fleet.opened[1][0].refuses_weights = True
    await fleet.replicas.load_weights({}, 4)
    assert [opened[0].version for opened in fleet.opened] == [4, 3, 4]
    await fleet.all_open()
    assert fleet.opened[1][0].closed
    assert [opened[-1].version for opened in fleet.opened] == [4, 4, 4]
    await fleet.replicas.close()


async def test_a_replica_that_fails_again_and_again_is_left_out_unless_it_took_weights_in_between() -> None:
    fleet = await started(2, restarts=1)
    for i in range(3):  # one failure between two updates is no reason
        fleet.opened[0][-1].poison = 17
        await fleet.turn([17])
        await fleet.all_open()
        await fleet.replicas.load_weights({}, 4 + i)
    fleet.opened[0][-1].poison = 17
    await fleet.turn([17])
    await fleet.all_open()
    fleet.opened[0][-1].poison = 17
    await fleet.turn([17])
    await until(lambda: fleet.opened[0][-1].closed)
    assert fleet.replicas.n_open == 1
    assert len(fleet.opened[0]) == 5
    fleet.opened[1][0].poison = 19
    with pytest.raises(EngineError, match="it broke"):
        await fleet.turn([19])
    await until(lambda: fleet.replicas.n_open == 1)
    fleet.opened[1][-1].poison = 19
    with pytest.raises(EngineError, match="again and again, at last with: it broke"):
        await fleet.turn([19])
    await fleet.replicas.close()


async def test_a_drained_replica_gives_its_episodes_away_with_their_ledger_and_seed() -> None:
    fleet = await started(2, Announced)
    busy, other = (opened[0] for opened in fleet.opened)
    await fleet.turn([1], "b")  # at the first; "b" moves with its next turn
    busy.go.clear()
    turn = asyncio.ensure_future(fleet.turn([2, 3, 5], "b", seed=30))
    await until(lambda: busy.asked == ["b", "b"])
    fleet.gates[0].clear()  # no other machine has room yet
    busy.patience_s.set_result(0.0)
    assert (await turn).token_ids == [40]
    await until(lambda: busy.closed)
    await fleet.turn([4], "b")
    assert other.asked == ["b", "b"]
    fleet.gates[0].set()
    await fleet.all_open()
    assert [len(opened) for opened in fleet.opened] == [2, 1]
    assert fleet.opened[0][1].version == 3  # with the weights of now
    other.patience_s.set_result(0.0)
    await until(lambda: other.closed)
    assert (await fleet.turn([6])).versions == [3]  # at whichever is there
    await fleet.replicas.close()


async def test_a_replica_that_was_there_and_is_refused_now_ends_no_run() -> None:
    """As a server that is down, while others serve: an address that never answered is a mistake, this is none."""
    fleet = await started(2)
    fleet.replicas._replicas[0].open = refused
    fleet.opened[0][0].poison = 19
    assert (await fleet.turn([19], "a")).token_ids == [19]
    await until(lambda: fleet.replicas._replicas[0].trouble is not None)
    assert (await fleet.turn([20], "a")).token_ids == [20]
    fleet.opened[1][0].poison = 19
    fleet.replicas._replicas[1].open = refused
    with pytest.raises(EngineError, match="it broke"):
        await fleet.turn([19])
    await until(lambda: fleet.replicas._replicas[1].trouble is not None)
    with pytest.raises(EngineError, match="no server at"):
        await fleet.turn([20])
    await fleet.replicas.close()


async def refused() -> Echo:
    raise UserError("no server at http://127.0.0.1:1 (ConnectionError): start it, or check the address")


async def test_the_only_replica_may_be_drained_and_turns_wait_for_it() -> None:
    fleet = await started(1, Announced)
    fleet.opened[0][0].go.clear()
    turn = asyncio.ensure_future(fleet.turn([2, 3], "a", seed=5))
    await until(lambda: fleet.opened[0][0].asked == ["a"])
    fleet.opened[0][0].patience_s.set_result(0.0)
    assert (await turn).token_ids == [10]
    assert [engine.closed for engine in fleet.opened[0]] == [True, False]
    await fleet.replicas.close()


async def test_who_is_closed_while_a_replica_is_drained_leaves_nothing_open() -> None:
    fleet = await started(1, Announced)
    engine = fleet.opened[0][0]
    engine.go.clear()
    turn = asyncio.ensure_future(fleet.turn([2], "a"))
    await until(lambda: engine.asked == ["a"])
    engine.patience_s.set_result(300.0)
    await until(lambda: fleet.replicas.n_open == 0)
    await fleet.replicas.close()
    assert engine.closed
    assert len(fleet.opened[0]) == 1
    engine.go.set()
    with pytest.raises(EngineError, match="was closed"):
        await turn


async def test_a_turn_that_ends_in_time_is_not_moved() -> None:
    fleet = await started(2, Announced)
    busy, other = (opened[0] for opened in fleet.opened)
    busy.go.clear()
    turn = asyncio.ensure_future(fleet.turn([2], "a"))
    await until(lambda: busy.asked == ["a"])
    busy.patience_s.set_result(300.0)
    await until(lambda: fleet.replicas.n_open == 1)
    busy.go.set()
    assert (await turn).token_ids == [2]
    assert other.asked == []
    await fleet.replicas.close()


async def test_who_gives_a_turn_up_ends_it_at_the_replica_too() -> None:
    fleet = await started(2)
    fleet.opened[0][0].go.clear()
    turn = asyncio.ensure_future(fleet.turn([2], "a"))
    await until(lambda: fleet.opened[0][0].asked == ["a"])
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await until(lambda: not fleet.replicas._replicas[0].turns)
    assert fleet.replicas._replicas[0].tokens == 0
    await fleet.replicas.close()


async def test_what_an_opener_refuses_is_said_at_once_and_a_failing_one_is_tried_again() -> None:
    async def refused() -> Echo:
        raise UserError("no such model")

    tries = []

    async def shaky() -> Echo:
        tries.append(1)
        if len(tries) < 3:
            raise EngineError("not yet")
        return Echo()

    with pytest.raises(UserError, match="no such model"):
        await Replicas([refused]).load_weights({}, 0)
    sampler = Replicas([shaky])
    await sampler.load_weights({}, 0)
    assert len(tries) == 3
    await sampler.close()
    tries[:] = [1] * -9
    with pytest.raises(EngineError, match="not yet"):
        await Replicas([shaky], restarts=1).load_weights({}, 0)


async def test_a_failed_engine_is_opened_again_with_the_weights_of_now() -> None:
    opened: list[HFEngine] = []

    async def open_engine() -> HFEngine:
        opened.append(HFEngine(build_model(shape, tokenizer, 0), tokenizer, slots=1))
        return opened[-1]

    @asynccontextmanager
    async def still() -> AsyncIterator[None]:
        held.append("held")
        yield
        held.append("free")

    held: list[str] = []

    def spoil(engine: HFEngine) -> None:
        engine._forward = ModelForward(engine._forward.model)
        engine._forward.model.model.layers[0].mlp.gate_proj = torch.nn.Linear(3, 3)

    tokenizer = build_tokenizer(["a b c"], 300)
    shape = BuildConfig(hidden_size=32, layers=1, heads=2, kv_heads=1, mlp_size=64, vocabulary=300)
    policy = Replicas([open_engine], still=still, restarts=1)
    other = build_model(shape, tokenizer, 1)
    try:
        await policy.load_weights(other.state_dict(), 7)
        before = await policy.generate([5, 6], Sampling(4, temperature=0.0))
        assert before.versions == [7] * len(before.versions)
        spoil(opened[0])
        with pytest.raises(EngineError, match="the hf engine failed"):
            await policy.generate([7, 8], Sampling(4, temperature=0.0))
        after = await policy.generate([5, 6], Sampling(4, temperature=0.0))
        assert (after.token_ids, after.versions) == (before.token_ids, before.versions)
        assert after.logprobs == pytest.approx(before.logprobs, abs=1e-6)
        spoil(opened[1])
        with pytest.raises(EngineError, match=r"again and again, at last with: the hf engine failed: RuntimeError"):
            await policy.generate([7, 8], Sampling(4, temperature=0.0))
        assert len(opened) == 2
        assert held == ["held", "free"] * 2  # whenever one is opened, and at no other time
    finally:
        await policy.close()


async def test_one_that_does_not_fall_asleep_is_opened_again_when_the_device_is_free() -> None:
    class Dozing(Echo):
        slept = 0

        async def sleep(self) -> None:
            self.slept += 1
            if len(opened) == 1:
                raise EngineError("it did not fall asleep")

    opened: list[Dozing] = []

    async def make() -> Dozing:
        opened.append(Dozing())
        return opened[-1]

    replicas = Replicas([make])
    await replicas.load_weights({}, 3)
    await replicas.sleep()
    await replicas.sleep()  # it is lent already
    for _ in range(9):
        await asyncio.sleep(0)
    assert [(one.slept, one.closed) for one in opened] == [(1, True)]
    await replicas.load_weights({}, 4)
    assert [one.version for one in opened] == [3, 4]
    await replicas.sleep()
    assert opened[1].slept == 1
    await replicas.close()
    assert opened[1].closed
