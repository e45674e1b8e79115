"""Replicas in processes of their own: what runs there (`Sampler`), and what stands for it here (`RemoteEngine`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from solostream.agent.engine import Engine, EngineError, Generation, Sampling, Weights
from solostream.training.cluster.lifeline import Handle, Lifeline, present
from solostream.training.cluster.parcels import Parcel, pack, unpack
from solostream.training.cluster.placement import versions
from solostream.training.cluster.ranks import RankWeights


class Sampler:
    """One engine. make: opens it. It is opened, and given its weights, by the owner of the run and by nobody else."""

    def __init__(self, make: Callable[[], Any], wanted: dict[str, str]) -> None:
        """wanted: the versions of the run; a machine that joins later may have others."""
        self._make, self._wanted = make, wanted
        self._engine: Engine | None = None
        self._has_weights = asyncio.Event()

    async def open(self) -> str | None:
        """Open the engine, instead of the one before. Returns the dtype of its weights, where it says."""
        if versions() != self._wanted:
            raise EngineError(f"this machine has {versions()}, the run {self._wanted}: install the same")
        await self.close()
        self._engine = await self._make()
        return getattr(self._engine, "dtype", None)

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
    """An `Engine` whose tokens are sampled by the `Sampler` behind `handle`, which is there and open.

    share: makes of a value a reference for many processes. None: a guest, who samples there and no more; weights and
    closing are the owner's. dtype: of the sampler's weights; None where it is not known.
    """

    def __init__(self, handle: Handle, share: Callable[[Any], Any] | None = None, dtype: str | None = None) -> None:
        self.dtype, self._share, self._line = dtype, share, Lifeline(handle)
        self.version = 0

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
        share = self._share
        assert share is not None
        return await asyncio.to_thread(lambda: Published(share(pack(weights, self.dtype))))

    async def watch(self) -> None:
        """See `solostream.agent.replicas.Watched`."""
        await self._line.end()

    async def close(self) -> None:
        """Close the engine there; its process stays, and may open another. A guest leaves it as it is."""
        if self._share is not None and not self._line.over:
            with suppress(EngineError):
                await self._line.call("close")
        await self._line.close()


async def open_remote(handle: Handle, share: Callable[[Any], Any]) -> RemoteEngine:
    """The owner's side of a replica: its engine is opened, and waits for weights."""
    await present(handle)
    return RemoteEngine(handle, share, await handle.call("open"))


async def reach_remote(handle: Handle) -> RemoteEngine:
    """A player's side of a replica: waits until its owner has opened it and given it weights, however long."""
    while True:
        await present(handle)
        with suppress(EngineError):  # it ended while its owner opened it
            await handle.call("with_weights")
            return RemoteEngine(handle)


async def by_memory(engines: Sequence[Engine], weights: Weights, version: int) -> list[BaseException | None]:
    """The transfer "memory": written once for each dtype that samples, read by every replica on its own.

    Nobody waits for a replica that is gone, nor does it hold up the others. What each replica raised.
    """
    remote = [engine for engine in engines if isinstance(engine, RemoteEngine)]
    published = {
        dtype: Published(weights.reference) if isinstance(weights, RankWeights) else await one.publish(weights)
        for dtype, one in {engine.dtype: engine for engine in remote}.items()
    }
    loads = (engine.load_weights(published[engine.dtype], version) for engine in remote)
    return list(await asyncio.gather(*loads, return_exceptions=True))
