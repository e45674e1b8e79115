"""`Workspace`: the interpreter of one episode, and the sandboxes that all environments of a process share.

A sandbox is opened once for each (spec, options, event loop) and closed with the last environment that uses it; a
session is opened by an episode's first call and closed at its end.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from solostream.errors import SandboxError, UserError
from solostream.retry import retry
from solostream.sandbox.spec import find, open_sandbox
from solostream.sandbox.types import Execution, Forkable, Sandbox, Session, check_timeout

SandboxSource = str | Callable[..., Sandbox]
_log = logging.getLogger(__name__)
_WRITE = """import json as _json, pathlib as _pathlib
for _name, _text in _json.loads({files!r}).items():
    _pathlib.Path(_name).parent.mkdir(parents=True, exist_ok=True)
    _pathlib.Path(_name).write_text(_text, encoding="utf-8")
del _name, _text, _json, _pathlib
"""


class Held(Protocol):
    """What a tool has open beside the interpreter: a connection, for example."""

    async def close(self) -> None:
        """Idempotent."""


@dataclass(slots=True)
class _Shared:
    sandbox: Sandbox
    users: int


Key = tuple[SandboxSource, str, asyncio.AbstractEventLoop]
_shared: dict[Key, _Shared] = {}  # a loop only ever touches its own keys: no lock


def _key(source: SandboxSource, options: Mapping[str, Any]) -> Key:
    return source, json.dumps(options, sort_keys=True, default=repr), asyncio.get_running_loop()


def _acquire(source: SandboxSource, options: Mapping[str, Any]) -> Sandbox:
    for gone in [key for key in _shared if key[2].is_closed()]:
        del _shared[gone]  # nobody closed its environments before the loop ended
    key = _key(source, options)
    if key not in _shared:
        sandbox = source(**options) if callable(source) else open_sandbox(source, **options)
        _shared[key] = _Shared(sandbox, 0)
    _shared[key].users += 1
    return _shared[key].sandbox


async def _release(source: SandboxSource, options: Mapping[str, Any]) -> None:
    key = _key(source, options)
    shared = _shared[key]
    shared.users -= 1
    if shared.users == 0:
        del _shared[key]
        await shared.sandbox.close()


class Workspace:
    """What a tool may run code in. One episode at a time, on one event loop."""

    def __init__(
        self, source: SandboxSource, options: Mapping[str, Any], *, timeout_s: float | None = None, retries: int = 2
    ) -> None:
        """Raises UserError for a sandbox that nothing has, and limits that are none: now, not at the first call."""
        if timeout_s is not None:
            check_timeout(timeout_s, "timeout_s")
        if not isinstance(retries, int) or retries < 0:
            raise UserError(f"retries={retries!r}: give a whole number, 0 or more")
        if isinstance(source, str):
            find(source)
        self._source, self._options = source, options
        self._timeout_s, self._retries = timeout_s, retries
        self._sandbox: Sandbox | None = None
        self._session: Session | None = None
        self._history: list[str] = []  # what built the session's state: replayed when infrastructure loses it
        self.loop: asyncio.AbstractEventLoop | None = None
        self._held: dict[str, tuple[Held, bool]] = {}  # what tools opened, and whether for one episode only
        self.keep: int | None = None  # a call of this turn folded history: see `Step.keep`

    async def run(self, code: str) -> Execution:
        """Run in the episode's own session: variables stay. Raises SandboxError after the last retry."""
        execution = await self._try(lambda: self._run_here(code))
        if execution.state_kept:
            self._history.append(code)
        else:
            self._history.clear()
        return execution

    def begin(self, files: Mapping[str, str]) -> None:
        """What lies in the interpreter's folder when an episode begins: path -> text. Before its first call."""
        if files:
            self._history.append(_WRITE.format(files=json.dumps(dict(files))))

    async def hold(self, key: str, opened: Callable[[], Held], episode: bool) -> Any:
        """What a tool opened under `key`, or opens now: closed with the environment, or with the episode."""
        if key not in self._held:
            self.loop = asyncio.get_running_loop()
            self._held[key] = (opened(), episode)
        return self._held[key][0]

    async def drop(self, key: str) -> None:
        """Close what is held under `key`, if anything is."""
        held = self._held.pop(key, None)
        if held is not None:
            await held[0].close()

    async def run_fresh(self, code: str) -> Execution:
        """Run in a session of its own, which is closed after. Raises SandboxError after the last retry."""
        return await self._try(lambda: self._run_apart(code))

    async def _try(self, attempt: Callable[[], Awaitable[Execution]]) -> Execution:
        def warn(error: Exception, left: int) -> None:
            if left:
                _log.warning("sandbox failed (%s); %d tries left", error, left)

        return await retry(attempt, SandboxError, self._retries, failed=warn)

    async def _run_here(self, code: str) -> Execution:
        try:
            if self._session is None:
                self._session = await self._open()
                for earlier in self._history:
                    await self._session.run(earlier, timeout=self._timeout_s)
            return await self._session.run(code, timeout=self._timeout_s)
        except SandboxError:
            await self._drop_session()
            raise

    async def _run_apart(self, code: str) -> Execution:
        session = await self._open()
        try:
            return await session.run(code, timeout=self._timeout_s)
        finally:
            await session.close()

    async def _open(self) -> Session:
        return await self._acquired().open()

    def _acquired(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = _acquire(self._source, self._options)
            self.loop = asyncio.get_running_loop()
        return self._sandbox

    async def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                await session.close()
            except SandboxError as error:
                _log.warning("a failed session would not close: %s", error)

    async def fork(self) -> Workspace:
        """A live copy: both go on from what has been run so far, each by itself.

        A backend that claims "fork" copies the session. For another, and where that fails, the calls that built the
        state are run again in a session of its own, before the next call.
        """
        twin = Workspace(self._source, self._options, timeout_s=self._timeout_s, retries=self._retries)
        twin._history = list(self._history)
        sandbox = self._acquired()  # whoever is copied keeps it open for the copies
        if self._session is not None and "fork" in sandbox.claims and isinstance(self._session, Forkable):
            try:
                twin._session = await self._session.fork()
                twin._acquired()
            except SandboxError as error:
                _log.warning("a session would not fork (%s): its calls are run again", error)
        return twin

    async def end_episode(self) -> None:
        """Close the session, and what tools hold for an episode; the sandbox stays."""
        self._history.clear()
        await self._drop_session()
        for key in [key for key, (_, episode) in self._held.items() if episode]:
            await self.drop(key)

    async def close(self) -> None:
        """Give the sandbox back too. Idempotent."""
        await self.end_episode()
        for key in list(self._held):
            await self.drop(key)
        self.loop = None
        if self._sandbox is not None:
            self._sandbox = None
            await _release(self._source, self._options)

    def successor(self) -> Workspace:
        """A workspace with the same settings for the loop that runs now; this one is closed on its own loop."""
        self.shutdown(wait=False)
        return Workspace(self._source, self._options, timeout_s=self._timeout_s, retries=self._retries)

    def shutdown(self, *, wait: bool = True) -> None:
        """`close` from outside its event loop: any thread, also when the loop is gone (its sessions died with it)."""
        loop = self.loop
        if loop is not None and not loop.is_running() and not loop.is_closed() and _running_loop() is None:
            loop.run_until_complete(self.close())
        elif loop is None or not loop.is_running():
            self._sandbox = self._session = self.loop = None
            self._held.clear()
        elif loop is _running_loop():
            task = loop.create_task(self.close())
            _closing.add(task)
            task.add_done_callback(_closing.discard)
        else:
            closed = asyncio.run_coroutine_threadsafe(self.close(), loop)
            if wait:
                closed.result()


_closing: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks only weakly


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
