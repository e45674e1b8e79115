"""The ranks of one learner: processes that hold a share of the weights each and take every step together.

One process is a group of one: what it gathers is its own, and torch.distributed is never asked.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RankGroup:
    """`world` processes, of which this is number `rank`, counted from 0. mesh: torch's, None for one process.

    Every method is called by all ranks, in the same order.
    """

    rank: int = 0
    world: int = 1
    mesh: Any = None

    @property
    def first(self) -> bool:
        """Whether this rank does what is done once: write a file, hand out whole weights."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The `value` of every rank, by rank."""
        if self.world == 1:
            return [value]
        every: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(every, value)
        return every

    def sums(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Over the ranks, by name; a rank may lack a name that others have."""
        total: dict[str, float] = defaultdict(float)
        for part in self.gather(dict(numbers)):
            for name, number in part.items():
                total[name] += number
        return dict(total)


ALONE = RankGroup()


def meet(host: str) -> Any:
    """The store in which the ranks find one another, at a free port of `host`; the first rank opens it."""
    return _store(host, 0, is_master=True)


def join(rank: int, world: int, store: Any, device: torch.device, timeout_s: float) -> RankGroup:
    """The group, once all have joined. timeout_s: how long a rank waits for the others, in every collective."""
    limit = datetime.timedelta(seconds=timeout_s)
    # Objects and files go by the CPUs, tensors by what holds them.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    from torch.distributed.device_mesh import init_device_mesh

    return RankGroup(rank, world, init_device_mesh(device.type, (world,)))


def reach(host: str, port: int, timeout_s: float) -> Any:
    """The store that the first rank has opened."""
    limit = datetime.timedelta(seconds=timeout_s)
    return _store(host, port, is_master=False, timeout=limit)


def _store(host: str, port: int, **options: Any) -> Any:
    distributed: Any = torch.distributed  # a class of C++, of which the stubs know nothing
    return distributed.TCPStore(host, port, wait_for_workers=False, **options)
