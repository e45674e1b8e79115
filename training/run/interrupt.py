"""Ctrl-C and SIGTERM, once: the run ends where its state is whole. A second one ends it at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The person asked to stop; what is worth keeping is in a checkpoint."""


class Interrupt:
    """`asked` turns True with the first signal. Make it inside the event loop that it serves."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def ask(self) -> None:
        """As a signal does; from any thread."""
        self._loop.call_soon_threadsafe(self._ask)

    @property
    def asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._event.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Without effect outside the main thread, where Python delivers no signals."""
        loop = asyncio.get_running_loop()
        try:
            for number in SIGNALS:
                loop.add_signal_handler(number, self._ask)
            yield
        except RuntimeError as error:
            if "main thread" not in str(error):
                raise
            yield
        finally:
            self._restore()

    async def race(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Raises Interrupted, with `work` cancelled, when a signal comes first."""
        task, asked = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Interrupted
        finally:
            for future in (task, asked):
                future.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)

    def _ask(self) -> None:
        self._event.set()
        self._restore()

    def _restore(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
