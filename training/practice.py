"""A sandbox for code that can be trusted: episodes share one session instead of opening one each.

Demonstrations are the trainer's own code. A confined session for each would cost most of the cold start: about ten
milliseconds of processor time against a fraction of one for a call in a session that is open. Names that one
demonstration binds are still bound in the next; the session is renewed every `EPISODES`.
"""

from __future__ import annotations

import asyncio

from sandbox.types import Claim, Execution, Limits, Sandbox, Session

EPISODES = 256


class Practice:
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
        async with self._lock:
            if self._session is None or self._opened == EPISODES:
                # Episodes that are still at the old session finish there; closing the sandbox ends it.
                self._session, self._opened = await self._sandbox.open(), 0
            self._opened += 1
            return _Borrowed(self._session)

    async def close(self) -> None:
        await self._sandbox.close()


class _Borrowed:
    def __init__(self, session: Session) -> None:
        self._session = session
        self.isolation: str = session.isolation

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        return await self._session.run(code, timeout=timeout)

    async def close(self) -> None:
        """The next episode goes on with the session."""
