"""vLLM's broadcast of weights (its backend "nccl") over gloo: the same two halves, where there is no GPU.

Only what touches NCCL is another: how the group is joined, and how a tensor is broadcast. The handshake, the order of
the calls and how weights get into the model are vLLM's (`vllm.distributed.weight_transfer.nccl_engine`).
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

HERE, GO = "here/{}", "go"  # in the store of a group


@dataclass(kw_only=True)
class GlooReceiverInit(NCCLWeightTransferInitInfo):
    """What a worker of vLLM is told, to join. timeout_s: of every broadcast."""

    timeout_s: float = 300.0


@dataclass
class GlooSenderInit(NCCLTrainerInitInfo):
    """What the learner's half is made of. master_port: 0 for any free one."""

    backend: ClassVar[str] = "gloo"
    timeout_s: float = 300.0


class GlooReceiver(NCCLWeightTransferEngine):
    """In a worker of vLLM."""

    init_info_cls = GlooReceiverInit
    _group: Any = None

    def init_transfer_engine(self, init_info: Any) -> None:
        """Join the learner's group, instead of the one before."""
        own = self.parallel_config
        rank = init_info.rank_offset + own.data_parallel_index * own.world_size + own.rank
        self.shutdown()
        where = init_info.master_address, init_info.master_port
        self._group = join(*where, rank, init_info.world_size, init_info.timeout_s)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As vLLM's, which then waits for an accelerator: gloo has delivered when it returns."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Load what is broadcast, tensor by tensor."""
        load: Any = self.model.load_weights
        names = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for name, dtype, shape in names:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            broadcast(self._group, tensor)
            load([(name, tensor)])

    def shutdown(self) -> None:
        """Leave the group; whoever waits for this worker notices."""
        self._group = None


class GlooSender(NCCLTrainerWeightTransferEngine):
    """At the learner."""

    init_info_cls = GlooSenderInit
    _group: Any = None

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> GlooSender:
        """Returns when all workers have joined; a rank of the learner that sends nothing joins none."""
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        if not engine.is_sender:
            return engine
        i = init_info
        store = _store(i.master_address, i.master_port, i.timeout_s, is_master=True)
        told = GlooReceiverInit(
            master_address=i.master_address,
            master_port=store.port,
            rank_offset=1,
            world_size=i.world_size,
            timeout_s=i.timeout_s,
        )
        pool = ThreadPoolExecutor(1)
        try:
            joining = pool.submit(client.init_weight_transfer_engine, asdict(told))
            _wait_for_all(store, i.world_size, joining, i.timeout_s)
            engine._group = _group(store, 0, i.world_size, i.timeout_s)
            joining.result()
        finally:
            pool.shutdown(wait=False)
        return engine

    def _broadcast(self, source: Any, meta: Any) -> None:
        if not self.is_sender:
            super()._broadcast(source, meta)
            return
        for _, tensor in self._checked_iter(source, meta):
            broadcast(self._group, tensor.contiguous())

    def shutdown(self) -> None:
        """End the group: workers that wait for a broadcast notice at once."""
        self._group = None


def join(host: str | None, port: int | None, rank: int, world: int, timeout_s: float) -> Any:
    """The group, for a worker. It comes into being when all have said that they are there: whoever had begun to form it
    could not be called back, and would hang on somebody who never comes.
    """
    store = _store(host, port, timeout_s, is_master=False)
    store.set(HERE.format(rank), b"")
    store.wait([GO])  # fails at once when the learner gives up, whose store it is
    return _group(store, rank, world, timeout_s)


def _wait_for_all(store: Any, world: int, joining: Future[None], timeout_s: float) -> None:
    """At the learner. joining: ends early where a worker says that it will not come."""
    end = time.monotonic() + timeout_s
    workers = [HERE.format(rank) for rank in range(1, world)]
    while not store.check(workers):
        if joining.done():
            joining.result()
            raise RuntimeError("a worker did not join where it was told to")
        if time.monotonic() > end:
            raise TimeoutError(f"not all workers have joined within {timeout_s:g} s")
        time.sleep(0.01)
    store.set(GO, b"")


def _store(host: str | None, port: int | None, timeout_s: float, *, is_master: bool) -> Any:
    distributed: Any = torch.distributed  # a class of C++, of which the stubs know nothing
    limit = timedelta(seconds=timeout_s)
    return distributed.TCPStore(host, port, is_master=is_master, timeout=limit, wait_for_workers=False)


def _group(store: Any, rank: int, world: int, timeout_s: float) -> Any:
    distributed: Any = torch.distributed
    named = distributed.PrefixStore("weights", store)
    return distributed.ProcessGroupGloo(named, rank, world, timedelta(seconds=timeout_s))


def broadcast(group: Any, tensor: torch.Tensor) -> None:
    """From the learner, which is number 0."""
    distributed: Any = torch.distributed
    options = distributed.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    group.broadcast([tensor], options).wait()
