"""The thread in which the learner works, one thing after the other, while episodes go on on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class LearnerThread:
    """One thread; what is given to it runs in the order in which it was given."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="learner")

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """What `work` returns or raises, when its turn has come."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Between two updates: it waits meanwhile, and the weights stay what they are."""
        loop, held, over = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def hold() -> None:
            loop.call_soon_threadsafe(held.set)
            over.wait()

        waiting = loop.run_in_executor(self._pool, hold)
        try:
            await held.wait()
            yield
        finally:
            over.set()
            await waiting

    def close(self) -> None:
        """Wait for what was given, then end the thread."""
        self._pool.shutdown()
