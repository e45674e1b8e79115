"""Whose the cores are: torch's threads of the sampler and of the learner, in a process that holds both.

While both compute, each has half; while one of them waits for the other (a cold start, an evaluation, the tracker's
start, the synchronous mode), the one that works has all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import torch


class Cores:
    """in_thread: runs a function in the learner's thread, for a thread's number of helpers is its own affair."""

    def __init__(self, in_thread: Callable[..., Awaitable[Any]], mode: str) -> None:
        self._in_thread = in_thread
        self._all = torch.get_num_threads()
        self._each = self._all if mode == "sync" else max(1, self._all // 2)

    async def share(self) -> None:
        """Both work from now on."""
        await self._give(self._each)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Only one of them works meanwhile."""
        await self._give(self._all)
        try:
            yield
        finally:
            await self._give(self._each)

    def leave(self) -> None:
        """The run is over: this thread has what it had before."""
        torch.set_num_threads(self._all)

    async def _give(self, threads: int) -> None:
        if threads != torch.get_num_threads():
            await self._in_thread(torch.set_num_threads, threads)
            torch.set_num_threads(threads)
