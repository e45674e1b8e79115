"""The sampler as the trainer holds it: an engine that is opened anew, with the weights of now, when it has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from solostream.agent.engine import Engine, EngineError, Generation, Sampling, Weights


class RestartingEngine:
    """An `Engine` around one that may crash.

    still: held while an engine that is opened anew reads the weights. Those that were loaded last are a live view of a
    learner, which keeps them; nothing of them is kept here. They may be one update ahead of `version`, until the
    `load_weights` of that update, which follows at once.

    A failed request restarts the engine and raises its EngineError: the episode is run again by whoever asked for it.
    `open_engine` makes one of any weights, which `load_weights` replaces before the first request.
    """

    def __init__(
        self,
        open_engine: Callable[[], Awaitable[Engine]],
        *,
        still: Callable[[], AbstractAsyncContextManager[None]],
        restarts: int = 3,
    ) -> None:
        self._open, self._still, self._left = open_engine, still, restarts
        self._engine: Engine | None = None
        self._weights: Weights | None = None
        self._lock = asyncio.Lock()
        self._opening: asyncio.Future[Engine] | None = None
        self.version = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """As the engine's. One that fails is opened again with the last weights, and this call raises EngineError."""
        engine = await self._ready()
        try:
            return await engine.generate(prompt_ids, sampling)
        except EngineError as error:
            await self._replace(engine, error)
            raise

    async def release(self, key: str) -> None:
        """As the engine's; nothing where none is open."""
        if self._engine is not None:
            await self._engine.release(key)

    async def load_weights(self, weights: Weights, version: int) -> None:
        """As the engine's. One that fails at it is opened again with these weights."""
        engine = await self._ready()
        self._weights, self.version = weights, version
        try:
            await engine.load_weights(weights, version)
        except EngineError as error:
            await self._replace(engine, error)

    async def close(self) -> None:
        """Close the engine, also one that is just opening."""
        async with self._lock:
            engine, self._engine = self._engine, None
            if self._opening is not None:
                await asyncio.wait([self._opening])
                engine = None if self._opening.exception() else self._opening.result()
                self._opening = None
            if engine is not None:
                await engine.close()

    async def _ready(self) -> Engine:
        async with self._lock:
            if self._engine is None:
                # Others wait for it: that the one who asked first is cancelled must not stop the opening half-way.
                self._opening = self._opening or asyncio.ensure_future(self._start())
                try:
                    self._engine = await asyncio.shield(self._opening)
                finally:
                    if self._opening.done():
                        self._opening = None
            return self._engine

    async def _start(self) -> Engine:
        """An engine that has the weights of now."""
        engine = await self._open()
        try:
            if self._weights is not None:
                async with self._still():
                    await engine.load_weights(self._weights, self.version)
        except BaseException:
            await engine.close()
            raise
        return engine

    async def _replace(self, broken: Engine, error: EngineError) -> None:
        """Close `broken`, which raised `error`; the next request opens a new one. Raises EngineError after too many.

        Nothing is done where another request has done it.
        """
        async with self._lock:
            if self._engine is not broken:
                return
            if self._left == 0:
                raise EngineError(f"the engine failed again and again, at last with: {error}") from error
            self._left -= 1
            self._engine = None
            await broken.close()
