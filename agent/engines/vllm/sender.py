"""The learner's end of vLLM's weight transfer: from the process of a rank straight to the workers of all replicas.

vLLM has a backend "nccl" (a broadcast to GPUs anywhere) and "ipc" (memory of the one GPU that both use); "gloo" is the
first of them without GPUs. Each asks the replicas for four things (`solostream.agent.engine.Receiver`), which go to
them by their handles; the tensors go by the backend's own way. What this adds is that it ends: when a replica fails,
or none answers in time, the group is given up, and whoever sends learns which replicas still owe an answer.
"""

from __future__ import annotations

import asyncio
import base64
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any, Protocol

from solostream.agent.engine import Weights

BACKENDS = ("nccl", "ipc", "gloo")
GRACE_S = 10.0  # for all to notice that one has failed


class Replica(Protocol):
    """What stands for a replica; see `solostream.training.cluster.handles`."""

    async def call(self, name: str, *args: Any) -> Any:
        """What its method `name` returns or raises."""
        ...


@dataclass(frozen=True, slots=True)
class Receivers:
    """Replicas of one moment. workers: of each, which all join. dtype: of what is sent. number: of this set."""

    replicas: tuple[Replica, ...]
    workers: tuple[int, ...]
    dtype: str | None
    number: int


class TransferFailed(Exception):
    """The replicas have no whole set of weights; each may have any part of them.

    stuck: numbers of the replicas that have not even said so, and perhaps never will.
    """

    def __init__(self, message: str, stuck: tuple[int, ...] = ()) -> None:
        super().__init__(message, stuck)
        self.message, self.stuck = message, stuck

    def __str__(self) -> str:
        return self.message


class LearnerWeights:
    """A `vllm.distributed.weight_transfer.base.WeightSource` over the weights of a learner, whole and in one dtype.

    To make a tensor whole is a collective of the ranks: all of them go through it, to the end, whatever happens.
    """

    def __init__(self, dtype: str | None, device: str | None) -> None:
        """device: where the backend takes tensors from; None: where they are."""
        self.weights: Weights = {}
        self.failed: BaseException | None = None  # what the ranks, not the transfer, failed with
        self._dtype, self._device = dtype, device
        self._passing: Iterator[tuple[str, Any]] | None = None

    def metadata(self) -> list[Any]:
        """Name, dtype and shape of all that will be sent."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        found = ((name, self.weights[name]) for name in self.weights)
        return [ParamMeta(name, self._wire(tensor), tuple(tensor.shape)) for name, tensor in found]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._passing = self._pass()
        return self._passing

    def finish(self) -> None:
        """What is left of the pass that somebody gave up, or all of it; the other ranks wait there."""
        for _ in self._passing or self:
            pass
        self._passing = None

    def _pass(self) -> Iterator[tuple[str, Any]]:
        for name in self.weights:
            try:
                tensor = self.weights[name].detach()
                whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
                found = whole.to(device=self._device, dtype=self._wire(tensor))
            except BaseException as error:
                self.failed = error
                raise
            yield name, found

    def _wire(self, tensor: Any) -> Any:
        import torch

        return getattr(torch, self._dtype) if self._dtype and tensor.is_floating_point() else tensor.dtype


class Control:
    """A `vllm.distributed.weight_transfer.base.VLLMWeightSyncClient` over replicas that know nothing of one another.

    trouble: done as soon as one of them fails. taking: done when all have said what became of the tensors.
    """

    def __init__(self, to: Receivers, timeout_s: float) -> None:
        self._to, self._timeout_s = to, timeout_s
        self.version = 0
        self.clear()

    def clear(self) -> None:
        """Before the next transfer."""
        self.trouble: Future[None] = Future()
        self.taking: Future[None] | None = None
        self.stuck: tuple[int, ...] = ()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each gets a place of its own: vLLM's own client would give all of them the same."""
        told = []
        for i in range(len(self._to.replicas)):
            first = {"rank_offset": 1 + sum(self._to.workers[:i])} if "rank_offset" in init_info else {}
            told.append(({**init_info, **first},))
        self._all("join_transfer", told)

    def start_weight_update(self) -> None:
        """They stop sampling between two steps."""
        self._all("begin_update", [()] * len(self._to.replicas))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Returns when all have the tensors, which arrive meanwhile."""
        if (handles := update_info.pop("ipc_handles", None)) is not None:  # no plain data, which vLLM wants here
            update_info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
        self.taking = Future()
        try:
            self._all("take_update", [(update_info,)] * len(self._to.replicas))
        finally:
            self.taking.set_result(None)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """They sample on, under the new weights."""
        self._all("end_update", [(self.version,)] * len(self._to.replicas))

    def _all(self, step: str, given: Sequence[tuple[Any, ...]]) -> None:
        """given: the arguments, for each replica."""

        async def together() -> None:
            calls = [
                asyncio.ensure_future(one.call("transfer", step, *arguments))
                for one, arguments in zip(self._to.replicas, given, strict=True)
            ]
            done, waiting = await asyncio.wait(calls, timeout=self._timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            failed = [error for call in done if (error := call.exception()) is not None]
            if not failed and not waiting:
                return
            said = f"{step}: {_line(failed[0])}" if failed else f"{step}: no answer within {self._timeout_s:g} s"
            if not self.trouble.done():
                self.trouble.set_exception(TransferFailed(said))
            if waiting:
                _, waiting = await asyncio.wait(waiting, timeout=2 * GRACE_S)
            self.stuck += tuple(i for i, call in enumerate(calls) if call in waiting)
            for call in waiting:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            raise TransferFailed(said, self.stuck)

        asyncio.run(together())


class Sender:
    """Of one rank of the learner, or of the only one: all call `send` alike, and the first sends.

    backend: one of `BACKENDS`. timeout_s: that the transfer waits for a replica. host: where workers find this process.
    """

    def __init__(self, backend: str, timeout_s: float, host: str = "127.0.0.1", rank: int = 0) -> None:
        self._backend, self._timeout_s, self._host, self._rank = backend, timeout_s, host, rank
        self._number: int | None = None
        self._engine: Any = None
        self._hangs = False

    def send(self, weights: Weights, to: Receivers, version: int) -> None:
        """Send all of `weights` to all of `to`. Raises TransferFailed, and what fails among the ranks themselves."""
        fresh = to.number != self._number
        if fresh:
            self.close()
            self._control = Control(to, self._timeout_s)
            self._source = LearnerWeights(to.dtype, "cpu" if self._backend == "gloo" else None)
        control, source = self._control, self._source
        control.clear()
        control.version, source.weights, source.failed, self._hangs = version, weights, None, False
        try:
            if fresh:
                connect = self._connecting(
                    1 + sum(to.workers)
                )  # to import vLLM takes its time, which is nobody's fault
                self._watched(connect)
                self._number = to.number
            self._watched(lambda: self._engine.send_weights())
        except BaseException:
            self.close()
            if source.failed is not None:
                raise source.failed from None
            if not self._hangs:
                source.finish()
            raise

    def close(self) -> None:
        """Leave the group, also one in which somebody hangs."""
        engine, self._engine, self._number = self._engine, None, None
        if engine is not None:
            with suppress(RuntimeError):
                engine.shutdown()

    def _connecting(self, world: int) -> Callable[[], None]:
        """What forms the group. world: this process and all workers of all replicas."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        info: Any
        if self._backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(rank=self._rank)
        elif self._backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            info = NCCLTrainerInitInfo(self._host, _free_port(self._host), world, rank=self._rank)
        else:
            from solostream.agent.engines.vllm.gloo import GlooSenderInit
            from solostream.agent.engines.vllm.worker import know_gloo

            know_gloo()
            info = GlooSenderInit(self._host, 0, world, rank=self._rank, timeout_s=self._timeout_s)
        factory: Any = WeightTransferTrainerFactory  # which knows what it wants by its methods

        def connect() -> None:
            self._engine = factory.trainer_init(info, client=self._control, source=self._source)

        return connect

    def _watched(self, work: Callable[[], None]) -> None:
        """`work`; given up, with the group, when a replica fails or it does not end in time."""
        if self._rank:  # it only helps the first to make tensors whole
            work()
            return
        done: Future[None] = Future()

        def run() -> None:
            try:
                _use_device_of(self._source.weights)
                work()
            except BaseException as error:
                done.set_exception(error.with_traceback(None))  # whose frames would keep what they have opened
            else:
                done.set_result(None)

        Thread(target=run, name="transfer", daemon=True).start()
        control = self._control
        wait([done, control.trouble], self._timeout_s + GRACE_S, FIRST_COMPLETED)
        if done.done() and done.exception() is None:
            return
        self.close()  # those who wait for a tensor notice
        wait([done], GRACE_S)
        self._hangs = not done.done()
        if control.taking is not None:
            wait([control.taking], 3 * GRACE_S)
        ended = [one.exception() for one in (control.trouble, done) if one.done()]
        said = _line(ended[0]) if ended and ended[0] else f"it is not over after {self._timeout_s:g} s"
        raise TransferFailed(said, control.stuck)


def _use_device_of(weights: Weights) -> None:
    """Every thread has a GPU of its own choice; the backends take that for the learner's."""
    first = weights[next(iter(weights))]
    if first.is_cuda:
        import torch

        torch.cuda.set_device(first.device)


def _free_port(host: str) -> int:
    with socket.socket() as listening:
        listening.bind((host, 0))
        return int(listening.getsockname()[1])


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
