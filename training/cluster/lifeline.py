"""Calls that end when the process that they are for ends.

Ray keeps the calls of an actor that waits for a machine, perhaps for ever: right for whoever opens one, wrong for a
turn, an episode or new weights. One call that never returns (`watch`) tells of the end; the others are given up then.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from solostream.agent.engine import EngineError
from solostream.training.cluster.handles import Dead

PAUSE_S = 0.5  # between two looks at a process that is away


class Handle(Protocol):
    """`Local` or `Actor`; see `solostream.training.cluster.handles`."""

    async def call(self, name: str, *args: Any, **kw: Any) -> Any:
        """What the method `name` returns or raises, and EngineError where there is nobody any more."""
        ...

    def move(self) -> None:
        """End the process, which starts again on another machine."""
        ...


async def present(handle: Handle) -> None:
    """Returns when the process behind `handle` is there: it may wait for a machine to join. Raises Dead."""
    while True:
        try:
            await handle.call("ready")
            return
        except Dead:
            raise
        except EngineError:  # it, or its machine, is just being replaced
            await asyncio.sleep(PAUSE_S)


class Lifeline:
    """The calls of one life of the process behind `handle`: one that is there now, and has a method `watch`."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._calls: set[asyncio.Task[Any]] = set()
        self._life = asyncio.ensure_future(self._watch())
        self._life.add_done_callback(self._end)

    @property
    def over(self) -> bool:
        """Whether the process is gone."""
        return self._life.done()

    async def call(self, name: str, *args: Any) -> Any:
        """As `Handle.call`; raises what `watch` raised when the process ends meanwhile, or has ended."""
        if self._life.done():
            await self._life
        call = asyncio.ensure_future(self._handle.call(name, *args))
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._life.done() and current is not None and not current.cancelling():
                await self._life
            raise
        finally:
            self._calls.discard(call)

    async def end(self) -> None:
        """Raises what ends this life, when that happens."""
        await asyncio.shield(self._life)

    async def close(self) -> None:
        """Nobody listens any more."""
        self._life.cancel()
        with suppress(BaseException):
            await self._life

    async def _watch(self) -> None:
        await self._handle.call("watch")

    def _end(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled():
            life.exception()  # seen: whoever calls next gets it
        for call in self._calls:
            call.cancel()
