"""The one loop behind every retry of the house. Who tries what again, and what it multiplies to: docs/retries.md."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def retry(
    attempt: Callable[[], Awaitable[T]],
    on: type[Exception] | tuple[type[Exception], ...],
    retries: int,
    *,
    pause_s: float = 0.0,
    failed: Callable[[Exception, int], None] = lambda error, left: None,
) -> T:
    """What `attempt()` returns, after up to `retries` more tries where it raised one of `on`; the last one is raised.

    pause_s: seconds before the second try, doubled before each later one. failed: told of every failure, and how many
    tries are left; it may raise to end the matter.
    """
    for left in range(retries, -1, -1):
        try:
            return await attempt()
        except on as error:
            failed(error, left)
            if left == 0:
                raise
        if pause_s:
            await asyncio.sleep(pause_s * 2 ** (retries - left))
    raise ValueError(f"retries must be at least 0, not {retries}")
