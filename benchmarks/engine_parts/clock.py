"""Whose CPU time it was: this thread's by account, other processes' from /proc."""

from __future__ import annotations

import asyncio
import functools
import resource
import threading
import time
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

_spent: dict[str, float] = defaultdict(float)  # account -> CPU seconds of this process
_charges: dict[str, int] = defaultdict(int)
_thread = threading.local()


@contextmanager
def charge(account: str) -> Iterator[None]:
    """Charge this thread's CPU time to `account`, less what is charged to another one within."""
    before, outside, _thread.inner = time.thread_time(), getattr(_thread, "inner", 0.0), 0.0
    try:
        yield
    finally:
        took = time.thread_time() - before
        _spent[account] += took - _thread.inner
        _charges[account] += 1
        _thread.inner = outside + took


def spent() -> dict[str, float]:
    """CPU seconds of every account, and as "clock" what keeping them has cost (in none of theirs)."""
    inside, around = _own_cost()
    times = {account: seconds - _charges[account] * inside for account, seconds in _spent.items()}
    return defaultdict(float, {**times, "clock": sum(_charges.values()) * (inside + around)})


@functools.cache
def _own_cost() -> tuple[float, float]:
    """CPU seconds of one charge: those it counts, and those around them. From charging nothing, many times."""
    before = time.thread_time()
    for _ in _Nothing().__await__():
        pass
    bare = time.thread_time() - before
    for _ in charged("nothing", _Nothing()):
        pass
    took = time.thread_time() - before - 2 * bare
    n, inside = _charges.pop("nothing"), _spent.pop("nothing")
    return inside / n, (took - inside) / n


class _Nothing:
    def __await__(self) -> Iterator[None]:
        for _ in range(20_000):
            yield


@types.coroutine
def charged(account: str, call: Awaitable[Any]) -> Generator[Any, None, Any]:
    """Awaits `call`; between the moments at which it waits, its thread works for `account`."""
    steps: Any = call.__await__()
    error: BaseException | None = None
    while True:
        try:
            with charge(account):
                waits_for = next(steps) if error is None else steps.throw(error)
        except StopIteration as end:
            return end.value
        try:
            yield waits_for
            error = None
        except BaseException as thrown:  # what it waited for has failed, or it is cancelled: its own affair
            error = thrown


def charge_tasks(loop: asyncio.AbstractEventLoop, owners: Mapping[str, str]) -> None:
    """Charge every task whose coroutine was written in a file with a key of `owners` in its path to that account."""

    def make(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        path = getattr(getattr(work, "cr_code", None), "co_filename", "")
        account = next((account for part, account in owners.items() if part in path), None)
        return asyncio.Task(work if account is None else _task(account, work), loop=loop, **options)

    loop.set_task_factory(make)  # type: ignore[arg-type]


async def _task(account: str, work: Awaitable[Any]) -> Any:
    return await charged(account, work)


def calls_charged(account: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with charge(account):
            return function(*arguments)

    return call


def tree_s(root: int) -> float:
    """CPU seconds of a process and all its descendants, dead ones included."""
    total = 0.0
    process = psutil.Process(root)
    for p in (process, *process.children(recursive=True)):
        try:
            total += sum(p.cpu_times()[:4])  # user, system, and both of reaped children
        except psutil.Error:
            continue
    return total


def children_s() -> float:
    """CPU seconds of everything that this process has started."""
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(tree_s(p.pid) for p in psutil.Process().children()) + gone.ru_utime + gone.ru_stime
