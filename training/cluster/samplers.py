"""Replicas in processes of their own: what runs there (`SamplerReplica`), and what stands for it here (`RemoteEngine`).

And how new weights get to them: through Ray's object store (`by_memory`), or by one of vLLM's transfers (`ByTransfer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from solostream.agent.engine import Engine, EngineError, Generation, Receiver, Sampling, Weights
from solostream.agent.engines.vllm.sender import Receivers, Sender, TransferFailed
from solostream.agent.replicas import Leaving
from solostream.errors import UserError
from solostream.training.cluster.handles import leaving_machines, own_machine
from solostream.training.cluster.lifeline import Handle, Lifeline, present
from solostream.training.cluster.parcels import Parcel, pack, unpack
from solostream.training.cluster.placement import versions
from solostream.training.cluster.ranks import RankWeights

LOOK_S = 5.0  # between two looks whether the replica's machine will be taken away
PATIENCE_S = 30.0  # for its turns to end, at most
FAILURES = 3  # of a transfer, one after the other


@dataclass(frozen=True, slots=True)
class Opened:
    """What an engine says of itself. dtype: of its weights, None where it does not say. transfer, workers: see
    `Receiver`. machine: see `own_machine`.
    """

    machine: str
    dtype: str | None = None
    transfer: str = "memory"
    workers: int = 1


class SamplerReplica:
    """One engine. make: opens it. It is opened, and given its weights, by the owner of the run and by nobody else."""

    def __init__(self, make: Callable[[], Any], wanted: dict[str, str]) -> None:
        """wanted: the versions of the run; a machine that joins later may have others."""
        self._make, self._wanted = make, wanted
        self._engine: Engine | None = None
        self._has_weights = asyncio.Event()

    async def open(self) -> Opened:
        """Open the engine, instead of the one before."""
        if versions() != self._wanted:
            raise EngineError(f"this machine has {versions()}, the run {self._wanted}: install the same")
        await self.close()
        self._engine = await self._make()
        engine = self._engine
        if isinstance(engine, Receiver):
            return Opened(own_machine(), getattr(engine, "dtype", None), engine.transfer, engine.workers)
        return Opened(own_machine(), getattr(engine, "dtype", None))

    async def ready(self) -> None:
        """Returns where there is somebody."""

    async def with_weights(self) -> None:
        """Returns once it has weights to sample from."""
        await self._has_weights.wait()

    async def watch(self) -> None:
        """Never returns: whoever waits for it notices that this process has ended."""
        await asyncio.Event().wait()

    async def generate(self, prompt_ids: np.ndarray, sampling: Sampling) -> Generation:
        """prompt_ids: int32 [tokens]. See `Engine.generate`."""
        if not self._has_weights.is_set():
            raise EngineError("this replica was started again and has no weights yet")
        return await self._open_one().generate(prompt_ids.tolist(), sampling)

    async def release(self, key: str) -> None:
        """See `Engine.release`."""
        if self._engine is not None:
            await self._engine.release(key)

    async def load_weights(self, parcel: Parcel, version: int) -> None:
        """See `Engine.load_weights`; the parcel is read while it is loaded, and not kept."""
        await self._open_one().load_weights(unpack(parcel), version)
        self._has_weights.set()

    async def transfer(self, step: str, *given: Any) -> None:
        """The `step` of a transfer; see `solostream.agent.engine.Receiver`."""
        await getattr(self._open_one(), step)(*given)

    async def close(self) -> None:
        """Close the engine; it may be opened again."""
        self._has_weights.clear()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    def _open_one(self) -> Engine:
        if self._engine is None:
            raise EngineError("this replica was started again and is not open yet")
        return self._engine


@dataclass(frozen=True, slots=True)
class Published:
    """Weights that lie where every process can read them. `reference`: of a `Parcel`."""

    reference: Any


class RemoteEngine:
    """An `Engine` whose tokens are sampled by the `SamplerReplica` behind `handle`, which is there and open.

    share: makes of a value a reference for many processes. None: a guest, who samples there and no more; weights and
    closing are the owner's. opened: what the sampler says of its engine.
    """

    def __init__(self, handle: Handle, share: Callable[[Any], Any] | None = None, opened: Opened | None = None) -> None:
        self.handle, self.opened = handle, opened or Opened("")
        self._share, self._line = share, Lifeline(handle)
        self._leaving = False
        self.version = 0

    @property
    def dtype(self) -> str | None:
        """Of the sampler's weights; None where it is not known."""
        return self.opened.dtype

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """See `Engine.generate`."""
        found: Generation = await self._line.call("generate", np.asarray(prompt_ids, np.int32), sampling)
        return found

    async def release(self, key: str) -> None:
        """See `Engine.release`; a replica that is gone has forgotten it already."""
        with suppress(EngineError):
            await self._line.call("release", key)

    async def load_weights(self, weights: Weights | Published, version: int) -> None:
        """See `Engine.load_weights`."""
        if not isinstance(weights, Published):
            weights = await self.publish(weights)
        await self._line.call("load_weights", weights.reference, version)
        self.version = version

    async def publish(self, weights: Weights) -> Published:
        """`weights` in this sampler's dtype, for it and for others like it."""
        if isinstance(weights, RankWeights):
            return Published(await asyncio.to_thread(weights.publish))
        share = self._share
        assert share is not None
        return await asyncio.to_thread(lambda: Published(share(pack(weights, self.dtype))))

    async def watch(self) -> None:
        """See `solostream.agent.replicas.Watched`."""
        end = asyncio.ensure_future(self._line.end())
        try:
            while not end.done():
                await asyncio.wait([end], timeout=LOOK_S)
                ends = await asyncio.to_thread(leaving_machines) if self._owns_one else {}
                left_s = ends.get(self.opened.machine)
                if left_s is not None and not end.done():
                    self._leaving = True
                    raise Leaving("the replica's machine will be taken away", max(0.0, min(left_s / 2, PATIENCE_S)))
            await end
        finally:
            end.cancel()

    @property
    def _owns_one(self) -> bool:
        """Whether it is this side that moves it, and there is a machine to move it from."""
        return self._share is not None and bool(self.opened.machine)

    async def close(self) -> None:
        """Close the engine there; its process stays, and may open another. A guest leaves it as it is."""
        if self._share is not None and not self._line.over:
            with suppress(EngineError):
                await self._line.call("close")
            if self._leaving:
                self.handle.move()
        await self._line.close()


async def open_remote(handle: Handle, share: Callable[[Any], Any], transfer: str = "memory") -> RemoteEngine:
    """The owner's side of a replica: its engine is opened, and waits for weights. Raises UserError for one that does
    not take them by `transfer`.
    """
    await present(handle)
    engine = RemoteEngine(handle, share, await handle.call("open"))
    if transfer not in ("memory", engine.opened.transfer):
        await engine.close()
        raise UserError(
            f'cluster.transfer = "{transfer}", but this engine takes weights by memory alone: set run.engine = "vllm", '
            'or cluster.transfer = "memory"'
        )
    return engine


async def reach_remote(handle: Handle) -> RemoteEngine:
    """A player's side of a replica: waits until its owner has opened it and given it weights, however long."""
    while True:
        await present(handle)
        with suppress(EngineError):  # it ended while its owner opened it
            await handle.call("with_weights")
            return RemoteEngine(handle)


async def by_memory(
    engines: Sequence[Engine], weights: Weights, version: int, patience_s: float | None = None
) -> list[BaseException | None]:
    """The transfer "memory": written once for each dtype that samples, read by every replica on its own.

    Nobody waits for a replica that is gone, nor does it hold up the others; for one that does not answer, patience_s.
    What each replica raised.
    """
    remote = [engine for engine in engines if isinstance(engine, RemoteEngine)]
    published = {
        dtype: await one.publish(weights) for dtype, one in {engine.dtype: engine for engine in remote}.items()
    }

    async def load(engine: RemoteEngine) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await engine.load_weights(published[engine.dtype], version)
        except TimeoutError:
            raise EngineError(f"the replica took no weights within {patience_s:g} s") from None

    return list(await asyncio.gather(*map(load, remote), return_exceptions=True))


class ByTransfer:
    """A transfer of vLLM's: the learner sends to all replicas at once, and to each by memory where that fails.

    Whoever opens anew, or comes late, gets its first weights by memory; the group is formed again with it.

    patience_s: that the learner waits for a replica. host: see `Sender`. say: told what failed.
    """

    def __init__(self, transfer: str, patience_s: float, host: Callable[[], str], say: Callable[[str], None]) -> None:
        self._transfer, self._patience_s, self._host, self._say = transfer, patience_s, host, say
        self._sender: Sender | None = None  # of a learner in this process
        self._members: tuple[Engine, ...] = ()
        self._number = self._failures = 0

    async def __call__(self, engines: Sequence[Engine], weights: Weights, version: int) -> list[BaseException | None]:
        """What each replica raised."""
        if self._failures == FAILURES:  # nobody died of it, and still it does not work
            return await by_memory(engines, weights, version)
        remote = tuple(engine for engine in engines if isinstance(engine, RemoteEngine))
        if remote != self._members:
            self._members, self._number = remote, self._number + 1
        handles, workers = tuple(one.handle for one in remote), tuple(one.opened.workers for one in remote)
        to = Receivers(handles, workers, remote[0].dtype, self._number)
        try:
            await asyncio.to_thread(self._send, weights, to, version)
        except TransferFailed as failure:
            self._members = ()
            self._failures += 1
            last = "; from here on all go that way" if self._failures == FAILURES else ""
            self._say(f"the transfer of weights failed ({failure}): these go by memory{last}")
            return await self._instead(engines, set(failure.stuck), weights, version)
        self._failures = 0
        for engine in remote:
            engine.version = version
        return [None] * len(engines)

    def _send(self, weights: Weights, to: Receivers, version: int) -> None:
        if isinstance(weights, RankWeights):
            weights.send(self._transfer, self._patience_s, to, version)
            return
        if self._sender is None:
            self._sender = Sender(self._transfer, self._patience_s, self._host())
        self._sender.send(weights, to, version)

    async def _instead(
        self, engines: Sequence[Engine], stuck: set[int], weights: Weights, version: int
    ) -> list[BaseException | None]:
        """By memory, to those that may still answer; the others are to be opened again."""
        free = [engine for i, engine in enumerate(engines) if i not in stuck]
        found = iter(await by_memory(free, weights, version, self._patience_s))
        hangs = EngineError("the replica hangs in a transfer of weights")
        return [hangs if i in stuck else next(found) for i in range(len(engines))]
