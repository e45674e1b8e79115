"""The synchronous face: one event loop in a background thread, shared by all who are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from solostream.errors import UserError
from solostream.sandbox.spec import open_sandbox
from solostream.sandbox.types import Execution, Forkable, Sandbox, Session

T = TypeVar("T")

_lock = threading.Lock()
_shared: tuple[int, asyncio.AbstractEventLoop] | None = None  # the process that started it, the loop


def background_loop() -> asyncio.AbstractEventLoop:
    """The shared loop, running in a daemon thread. A forked process gets its own: threads do not survive a fork."""
    global _shared
    with _lock:
        if _shared is None or _shared[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sandbox-loop", daemon=True).start()
            _shared = (os.getpid(), loop)
        return _shared[1]


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held the old one at the fork


os.register_at_fork(after_in_child=_new_lock)


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the shared loop and block until it is done. Works inside a running loop (Jupyter) as well."""
    loop = background_loop()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C in the caller: the call in the sandbox must not go on
        raise


def in_any_thread(work: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """`work`, which runs an event loop of its own: where one is running already (a notebook), in another thread.

    `stop` asks it to end, when Ctrl-C comes to this thread instead.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1, thread_name_prefix="solostream") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            stop()
            raise


class Interpreter:
    """One stateful interpreter, called like a function.

        with Interpreter() as py:
            assert py.run("1 + 1").result == "2"

    Args: as `open_sandbox`. Raises: UserError for a bad spec; `run` raises SandboxError when the infrastructure fails.
    """

    def __init__(self, spec: str = "fork", **options: Any) -> None:
        self._sandbox: Sandbox = open_sandbox(spec, **options)
        self._session: Session | None = None
        self._owner = os.getpid()

    @property
    def isolation(self) -> str:
        """What the backend enforces, in words; see `Sandbox.isolation`."""
        return self._sandbox.isolation

    def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """Run `code` and wait; `timeout` in seconds. Opens the session on first use."""
        return wait(self._run(code, timeout))

    async def _run(self, code: str, timeout: float | None) -> Execution:
        if self._session is None or self._owner != os.getpid():  # a fork shares nothing with its parent's session
            self._owner = os.getpid()
            self._session = await self._sandbox.open()
        return await self._session.run(code, timeout=timeout)

    def fork(self) -> Interpreter:
        """A live copy: every variable as it is now, then both go on by themselves. It ends with its original's sandbox.

        Raises: UserError when the backend cannot; the claim "fork" says which can.
        """
        copy = Interpreter.__new__(Interpreter)
        copy._sandbox, copy._session, copy._owner = self._sandbox, wait(self._fork()), os.getpid()
        return copy

    async def _fork(self) -> Session:
        if self._session is None or self._owner != os.getpid():
            return await self._sandbox.open()
        if "fork" not in self._sandbox.claims or not isinstance(self._session, Forkable):
            raise UserError("this sandbox cannot copy a live session; those that claim 'fork' can: 'fork' and 'docker'")
        return await self._session.fork()

    def close(self) -> None:
        """End the session and its sandbox. Idempotent; a later `run` starts anew."""
        self._session = None
        wait(self._sandbox.close())

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
