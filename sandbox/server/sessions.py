"""Live sessions behind ids, and the bounded queue in front of every call."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from solostream.errors import UserError
from solostream.sandbox.server.metrics import ServerMetrics
from solostream.sandbox.server.settings import Settings
from solostream.sandbox.types import Execution, Sandbox, Session


class Busy(Exception):
    """No room now. `status` is 503 (refused at once) or 504 (waited in vain); in neither case did anything run."""

    def __init__(self, status: int, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Gone(Exception):
    """The id names no live session: closed, expired, or lost with its worker."""


@dataclass(slots=True)
class Entry:
    """A live session, the lease that it ends with (None: no lease), and when it was last used (monotonic, s)."""

    session: Session
    lease: str | None
    last_used: float
    calls: int = 0  # in progress or waiting


@dataclass(slots=True)
class Sessions:
    """Sessions of one worker. `name` is the worker's; it starts every id."""

    sandbox: Sandbox
    settings: Settings
    metrics: ServerMetrics
    name: str = "0"
    waiting: int = 0
    opening: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)  # those that this worker has given and whose clients are there
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.settings.running)
        self.metrics.live.set(0)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A slot among the running calls. Raises Busy."""
        if self._slots.locked() and self.waiting >= self.settings.queue:
            self.metrics.refused.labels("queue_full").inc()
            raise Busy(503, f"{self.settings.running} calls run and {self.waiting} wait; try again later")
        self.waiting += 1
        try:
            await asyncio.wait_for(self._slots.acquire(), self.settings.queue_timeout_s)
        except TimeoutError:
            self.metrics.refused.labels("queue_timeout").inc()
            raise Busy(504, f"no turn within {self.settings.queue_timeout_s:g} s; try again later") from None
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def open(self, lease: str | None = None) -> str:
        """The id of a fresh session. Raises Busy and SandboxError."""
        if len(self.entries) + self.opening >= self.settings.sessions:
            self.metrics.refused.labels("sessions_full").inc()
            raise Busy(503, f"{self.settings.sessions} sessions are open; close one, or start with more --sessions", 2)
        self.opening += 1
        try:
            async with self.turn():
                session = await self.sandbox.open()
        finally:
            self.opening -= 1
        number = f"{self.name}-{secrets.token_hex(12)}"
        self.entries[number] = Entry(session, lease, time.monotonic())
        self.metrics.live.set(len(self.entries))
        return number

    @contextlib.asynccontextmanager
    async def use(self, number: str) -> AsyncIterator[Session]:
        """The session, kept from expiry while it is used; closed when the caller is cancelled. Raises Gone and Busy."""
        entry = self.entries.get(number)
        if entry is None:
            raise Gone(
                f"no session {number}: closed, expired after {self.settings.idle_s:g} s, or lost with its worker"
            )
        entry.calls += 1
        try:
            async with self.turn():
                yield entry.session
        except asyncio.CancelledError:
            await asyncio.shield(self.close(number))
            raise
        finally:
            entry.calls -= 1
            entry.last_used = time.monotonic()

    async def call(self, number: str, code: str, timeout: float | None) -> Execution:
        """One call in a session. Raises UserError for a time-out out of range, Gone, Busy and SandboxError."""
        self.check_timeout(timeout)
        async with self.use(number) as session:
            return await self.run(session, code, timeout)

    @contextlib.asynccontextmanager
    async def once(self) -> AsyncIterator[Session]:
        """A fresh session for one request. Raises Busy and SandboxError."""
        async with self.turn():
            session = await self.sandbox.open()
            try:
                yield session
            finally:
                await asyncio.shield(session.close())

    async def run(self, session: Session, code: str, timeout: float | None) -> Execution:
        """Run code and count it."""
        seen = await session.run(code, timeout=timeout)
        self.metrics.count(seen)
        return seen

    def check_timeout(self, timeout: float | None) -> None:
        """Raises UserError for a time-out (seconds) that the settings do not allow."""
        if timeout is not None and not 0 < timeout <= self.settings.max_timeout_s:
            raise UserError(f"a time-out is more than 0 and at most {self.settings.max_timeout_s:g} s, not {timeout}")

    def isolation(self, number: str) -> str:
        """What confines session `number`. Raises Gone where there is none."""
        return self.entries[number].session.isolation

    async def close(self, number: str) -> None:
        """Unknown ids are closed already."""
        entry = self.entries.pop(number, None)
        if entry is not None:
            self.metrics.live.set(len(self.entries))
            await entry.session.close()

    async def close_lease(self, lease: str) -> None:
        """Close the sessions of a client that has gone."""
        await asyncio.gather(*(self.close(n) for n, entry in list(self.entries.items()) if entry.lease == lease))

    async def expire(self) -> None:
        """Runs for as long as the server does: closes what nobody calls any more."""
        while True:
            await asyncio.sleep(min(1.0, self.settings.idle_s / 4))
            old = time.monotonic() - self.settings.idle_s
            for number, entry in list(self.entries.items()):
                if entry.calls == 0 and entry.last_used < old:
                    self.metrics.expired.inc()
                    with contextlib.suppress(Exception):  # one session that cannot be closed must not stop the rest
                        await self.close(number)

    async def close_all(self) -> None:
        """Close every session, whatever some of them raise."""
        await asyncio.gather(*(self.close(number) for number in list(self.entries)), return_exceptions=True)
