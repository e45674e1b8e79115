"""What needs no Ray: weights as parcels, lifelines, versions, replicas and players behind objects of this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from light_actors import FilePlayer, OpenFileEngine
from tiny_models import model

from solostream.agent.engine import EngineError, Sampling
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.replicas import Replicas
from solostream.agent.trajectory import Dispatch
from solostream.errors import UserError
from solostream.training.cluster.handles import Dead, Local
from solostream.training.cluster.lifeline import Lifeline
from solostream.training.cluster.parcels import n_bytes, pack, unpack
from solostream.training.cluster.placement import Placement, processors, refuse_other_versions, versions
from solostream.training.cluster.players import PlayerLost, Players
from solostream.training.cluster.samplers import SamplerReplica, by_memory, open_remote, reach_remote
from solostream.training.config import Config
from solostream.training.config.cluster import ClusterConfig


def test_a_parcel_holds_every_weight_once_and_in_the_samplers_dtype() -> None:
    weights = LiveWeights(model("qwen3"))
    exact, half = unpack(pack(weights)), unpack(pack(weights, "bfloat16"))
    assert set(exact) == set(half) == set(weights)
    assert all(torch.equal(exact[name], weights[name]) for name in weights)
    assert all(torch.equal(half[name], weights[name].bfloat16()) for name in weights)
    assert half["lm_head.weight"].data_ptr() == half["model.embed_tokens.weight"].data_ptr()  # tied: sent once
    once = sum(w.numel() for name, w in weights.items() if name != "lm_head.weight")
    assert (n_bytes(pack(weights)), n_bytes(pack(weights, "bfloat16"))) == (4 * once, 2 * once)


class Merged(Mapping[str, torch.Tensor]):
    """Weights that are made when they are read; what is read first lies where all that was read once has lain."""

    def __init__(self, **values: list[float]) -> None:
        self._values, self._place, self._read = values, torch.zeros(2), set[str]()

    def __getitem__(self, name: str) -> torch.Tensor:
        value = torch.tensor(self._values[name])
        if name in self._read:
            return value
        self._read.add(name)
        return self._place.copy_(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def test_weights_that_lay_in_one_place_after_each_other_are_no_tied_ones() -> None:
    found = unpack(pack(Merged(a=[1.0, 3.0], b=[5.0, 7.0]), "bfloat16"))
    assert {name: value.tolist() for name, value in found.items()} == {"a": [1.0, 3.0], "b": [5.0, 7.0]}


def test_the_parcel_of_float32_weights_is_a_view_of_them() -> None:
    weights = {"w": torch.arange(6.0).reshape(2, 3)}
    parcel = pack(weights)
    weights["w"][1, 2] = 40.0
    assert unpack(parcel)["w"][1, 2] == 40.0


def test_a_machine_alone_has_the_processors_that_are_there_whatever_ray_was_told() -> None:
    assert processors({"CPU": 513.0, "GPU": 1.0}, alone=True) == os.cpu_count()
    assert processors({"CPU": 513.0}, alone=False) == 513
    assert processors({"GPU": 3.0}, alone=False) == 0


def test_a_machine_with_another_version_is_named() -> None:
    own = {"Python": "3.11.2", "solostream": "0.1.0", "torch": "2.13.0", "vllm": "none"}
    refuse_other_versions({"here": own, "10.0.0.7": dict(own)})
    with pytest.raises(
        UserError, match=r"torch is 2\.13\.0 here and 2\.9\.1 on 10\.0\.0\.8 of the cluster: install the same"
    ):
        refuse_other_versions({"here": own, "10.0.0.7": own, "10.0.0.8": {**own, "torch": "2.9.1"}})
    with pytest.raises(UserError, match=r"vllm is none here and 0\.32\.0 on 10\.0\.0\.7"):
        refuse_other_versions({"here": own, "10.0.0.7": {**own, "vllm": "0.32.0"}})


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://head:10001", 'is no address of a Ray cluster: give "auto", or "HOST:6379"'),
        ("head", 'is no address of a Ray cluster: give "auto", or "HOST:6379"'),
    ],
)
def test_an_address_that_answers_nobody_is_one_line(address: str, words: str) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected already")
    with pytest.raises(UserError) as caught:
        Placement(ClusterConfig(address=address))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Mortal:
    """Something behind a handle that can end."""

    def __init__(self, error: type[Exception] = EngineError) -> None:
        self.dead, self.error, self.asked = asyncio.Event(), error, 0

    async def watch(self) -> None:
        await self.dead.wait()
        raise self.error("it ended")

    async def slow(self, seconds: float = 1e6) -> float:
        self.asked += 1
        await asyncio.sleep(seconds)
        return seconds


async def test_calls_end_with_the_process_even_those_that_nobody_would_ever_answer() -> None:
    mortal = Mortal()
    line = Lifeline(Local(mortal))
    assert await line.call("slow", 0.0) == 0.0
    calls = [asyncio.ensure_future(line.call("slow")) for _ in range(5)]
    given_up = calls.pop()
    while mortal.asked < 6:  # noqa: ASYNC110
        await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    mortal.dead.set()
    assert [str(e) for e in await asyncio.gather(*calls, return_exceptions=True)] == ["it ended"] * 4
    assert line.over
    with pytest.raises(EngineError, match="it ended"):
        await line.call("slow", 0.0)
    with pytest.raises(EngineError, match="it ended"):
        await line.end()
    await line.close()


async def test_a_player_samples_from_what_the_owner_opened_and_closes_nothing_of_it(tmp_path: Path) -> None:
    samplers = [Local(SamplerReplica(OpenFileEngine(tmp_path, i), versions())) for i in range(2)]
    owner = Replicas([partial(open_remote, one, lambda value: value) for one in samplers], send=by_memory)
    guest = Replicas([partial(reach_remote, one) for one in samplers])
    turn = asyncio.ensure_future(guest.generate([4, 9], Sampling(4, seed=5, key="a")))
    await owner.load_weights({"w": torch.full((5,), 2.0)}, 6)  # only then is there anything to sample from
    got = await turn
    assert (got.token_ids, got.versions) == ([13 * 7 + 5 + 10], [6])
    await guest.close()
    assert (await owner.generate([4, 9], Sampling(4, seed=5))).token_ids == got.token_ids
    await owner.close()
    with pytest.raises(EngineError, match="no weights yet"):
        await samplers[0].call("generate", torch.tensor([1]).numpy(), Sampling(1))


class Flaky(FilePlayer):
    """A player that goes away when it is told to, and may come again."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.gone, self.here, self.done = asyncio.Event(), asyncio.Event(), 0
        self.here.set()

    async def ready(self) -> None:
        await self.here.wait()

    async def watch(self) -> None:
        await self.gone.wait()
        raise PlayerLost("the player is gone")

    async def grow(self, *given: Any) -> Any:
        self.done += 1
        return await super().grow(*given)


@pytest.mark.filterwarnings("ignore:none of the first")
async def test_episodes_go_to_the_players_that_are_there_the_fewest_in_hand_first(tmp_path: Path) -> None:
    flaky = [Flaky(tmp_path, i) for i in range(3)]
    flaky[2].here.clear()  # waits for a machine
    players = Players(Config(), [Local(one) for one in flaky])

    async def episode(seed: int) -> int:
        played = await players.grow(None, "t", players.sampling(1.0), Dispatch(seed), seed)  # type: ignore[arg-type]
        assert played.line == played.to_json().encode()  # for the log, made where it was played
        return int(played.token_ids[-1])

    assert await asyncio.gather(*(episode(i) for i in range(7))) == list(range(7))
    assert [one.done for one in flaky] == [4, 3, 0]
    flaky[0].here.clear()
    flaky[0].gone.set()
    flaky[2].here.set()
    while not players._seats[2].line or not players._seats[0].line.over:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await asyncio.gather(*(episode(i) for i in range(4))) == list(range(4))
    assert [one.done for one in flaky] == [4, 5, 2]
    flaky[0].gone.clear()
    flaky[0].here.set()
    while not players._seats[0].line:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await asyncio.gather(*(episode(i) for i in range(3))) == [0, 1, 2]
    assert [one.done for one in flaky] == [5, 6, 3]
    await players.close()


async def test_players_of_which_none_will_ever_come_are_an_error(tmp_path: Path) -> None:
    class Unmade(Flaky):
        async def ready(self) -> None:
            raise Dead("the player 0 is gone for good (ModuleNotFoundError)")

    players = Players(Config(), [Local(Unmade(tmp_path, 0))])
    with pytest.raises(EngineError, match="gone for good"):
        await players.grow(None, "t", players.sampling(1.0), Dispatch(), 0)  # type: ignore[arg-type]
    await players.close()
