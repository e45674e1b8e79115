"""A sandbox for code that can be trusted: episodes share one session instead of opening one each.

Demonstrations are the trainer's own code. A confined session for each would cost most of the cold start: about ten
milliseconds of processor time against a fraction of one for a call in a session that is open. What a demonstration
sees is what a session of its own shows: one that meets an error (whose text counts the session's cells) goes on in a
session of its own. Names stay bound from one to the next, and none can make a later one pass: every reference solution
(`arithmetic.KINDS`, also short of its last character) binds what it reads in its own cell, and binds nothing that
another reads unbound. The session is renewed every `EPISODES`.
"""

from __future__ import annotations

import asyncio

from solostream.errors import SandboxError
from solostream.sandbox.types import Claim, Execution, Limits, Sandbox, Session

EPISODES = 256


class SharedSession:
    """A `Sandbox` around another whose sessions it shares out."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._session: Session | None = None
        self._opened = 0
        self._lock = asyncio.Lock()
        self.isolation: str = sandbox.isolation
        self.limits: Limits = sandbox.limits
        self.claims: frozenset[Claim] = sandbox.claims - {"sessions"}

    async def open(self) -> Session:
        """A view of the shared session; after `EPISODES` of them it is a new one. Raises SandboxError."""
        async with self._lock:
            if self._session is None or self._opened == EPISODES:
                # Episodes that are still at the old session finish there; closing the sandbox ends it.
                self._session, self._opened = await self._sandbox.open(), 0
            self._opened += 1
            return _Episode(self, self._session)

    async def alone(self) -> Session:
        """A session that is not shared."""
        return await self._sandbox.open()

    def discard(self, session: Session) -> None:
        """`session` failed, or lost its state: the next episode gets a new one."""
        if self._session is session:
            self._session = None

    async def close(self) -> None:
        """Close the sandbox, and with it every session."""
        await self._sandbox.close()


class _Episode:
    """One episode's view of the shared session, and of its own after an error."""

    def __init__(self, practice: SharedSession, shared: Session) -> None:
        self._practice, self._shared = practice, shared
        self._own: Session | None = None
        self._history: list[str] = []
        self.isolation: str = shared.isolation

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        if self._own is not None:
            return await self._own.run(code, timeout=timeout)
        try:
            execution = await self._shared.run(code, timeout=timeout)
        except SandboxError:
            self._practice.discard(self._shared)
            raise
        if execution.status == "ok":
            self._history.append(code)
            return execution
        if not execution.state_kept:
            self._practice.discard(self._shared)
        self._own = await self._practice.alone()
        for earlier in self._history:
            await self._own.run(earlier, timeout=timeout)
        return await self._own.run(code, timeout=timeout)

    async def close(self) -> None:
        """The next episode goes on with the shared session."""
        if self._own is not None:
            await self._own.close()
