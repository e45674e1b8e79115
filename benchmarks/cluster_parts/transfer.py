"""Weights of a 0.5 B model to two replicas through Ray's object store, against copying the same bytes in a process."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import torch

from solostream.agent.engine import Generation
from solostream.agent.replicas import Replicas
from solostream.training.cluster.handles import share
from solostream.training.cluster.placement import Placement, versions
from solostream.training.cluster.samplers import SamplerReplica, by_memory, open_remote
from solostream.training.config.cluster import ClusterConfig

LAYERS, WIDTH, ROWS = 24, 896, 151_936  # about those of Qwen2.5-0.5B: 24 layers, a vocabulary of 152 k
ROUNDS = 5


def weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """bfloat16, as they are sent."""
    made = {"embed": (ROWS, WIDTH)} | {f"layer.{i}": (WIDTH, 16_640) for i in range(LAYERS)}
    return {name: torch.full(shape, scale, dtype=torch.bfloat16) for name, shape in made.items()}


class Holder:
    """The weights of an engine and nothing else of it."""

    dtype = "bfloat16"

    def __init__(self) -> None:
        self.version, self._own = -1, weights(0.0)

    async def generate(self, prompt_ids: Any, sampling: Any) -> Generation:
        return Generation([int(self._own["layer.7"][3, 5])], [0.0], [self.version], "stop")

    async def release(self, key: str) -> None:
        pass

    async def load_weights(self, new: Any, version: int) -> None:
        for name, tensor in self._own.items():
            tensor.copy_(new[name])
        self.version = version

    async def close(self) -> None:
        pass


async def open_holder() -> Holder:
    return Holder()


async def measure() -> dict[str, float]:
    """Seconds: the least of some rounds, which other work on the machine disturbed least."""
    sent, target = weights(), weights(0.0)
    copies = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for name, tensor in target.items():
            tensor.copy_(sent[name])
        copies.append(time.perf_counter() - started)
    del target
    placement = Placement(ClusterConfig(replicas=2))
    try:
        actors = [placement.actor(SamplerReplica, open_holder, versions(), who=f"the replica {i}") for i in range(2)]
        replicas = Replicas([partial(open_remote, actor, share) for actor in actors], send=by_memory)
        await replicas.load_weights(sent, 0)
        while replicas.n_open < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        sends = []
        for version in range(1, ROUNDS + 1):
            started = time.perf_counter()
            await replicas.load_weights(sent, version)
            sends.append(time.perf_counter() - started)
        await replicas.close()
    finally:
        placement.close()
    size = sum(tensor.nbytes for tensor in sent.values())
    return {"bytes": float(size), "copy_s": min(copies), "send_s": min(sends), "ratio": min(sends) / min(copies)}


def table(found: dict[str, float]) -> str:
    return (
        f"{found['bytes'] / 1e9:.2f} GB of bfloat16: copied in {found['copy_s']:.2f} s, at two replicas in "
        f"{found['send_s']:.2f} s, {found['ratio']:.1f} times (wanted: at most 2)"
    )
