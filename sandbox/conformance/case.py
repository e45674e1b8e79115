"""What a case is, and the arena in which it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from solostream.sandbox.types import Claim, Execution, Limits, Sandbox, Session

CLAIMS: tuple[Claim, ...] = get_args(Claim)

# A rename of the process marks everything that a session starts: forks and threads inherit the name, and the host
# reads it in /proc/*/comm, whatever namespace the process lives in.
_RENAME = "import ctypes as _c; _c.CDLL(None).prctl(15, b'{tag}', 0, 0, 0); del _c\n"


class Skip(Exception):
    """The case cannot be judged here; the message says why."""


def expect(holds: bool, promise: str, seen: Execution | None = None) -> None:
    """Raises AssertionError naming the promise and, when given, what was seen instead."""
    if not holds:
        raise AssertionError(promise + (f"; saw {brief(seen)}" if seen is not None else ""))


def brief(seen: Execution) -> str:
    """One line about an execution, each text cut at 120 characters."""
    error = f"{seen.error.name}: {seen.error.message}" if seen.error else None
    texts = {"result": seen.result, "stdout": seen.stdout, "stderr": seen.stderr, "error": error}
    shown = [f"{name}={text[:120]!r}" for name, text in texts.items() if text]
    return " ".join([f"status={seen.status}", f"state_kept={seen.state_kept}", *shown])


@dataclass(slots=True)
class Arena:
    """What a case gets: sessions that carry its tag and are closed after it, canaries, the growth of the host."""

    sandbox: Sandbox
    tag: str  # at most 15 bytes: a process name
    spec: str | None = None  # None when the suite was handed a live sandbox
    secret: str = ""  # planted in the host's environment and files; no session may ever see it
    hidden: tuple[str, ...] = ()  # files on the host, readable by everyone, that hold the secret
    sessions: list[Session] = field(default_factory=list)
    _rss_kb: int = 0

    def __post_init__(self) -> None:
        self._rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @property
    def limits(self) -> Limits:
        """The limits that the backend under test was opened with."""
        return self.sandbox.limits

    async def open(self) -> Session:
        """A fresh session whose processes carry the tag. Closed after the case."""
        session = await self.sandbox.open()
        self.sessions.append(session)
        rename = _RENAME.format(tag=self.tag)
        if "state" not in self.sandbox.claims:
            return _Tagged(session, rename, session.isolation)
        await session.run(rename)
        return session

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """One call in a fresh session."""
        return await (await self.open()).run(code, timeout=timeout)

    async def close(self) -> None:
        """Close the case's sessions, all at once. Raises what a backend's close raises."""
        sessions, self.sessions = self.sessions, []
        await asyncio.wait_for(asyncio.gather(*(session.close() for session in sessions)), 30)

    def host_grew_mb(self) -> float:
        """How much the peak memory of this process grew since the case began, in MB."""
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._rss_kb) / 1024


@dataclass(slots=True)
class _Tagged:
    """A session of a backend that keeps no state: the rename goes in front of each program."""

    session: Session
    rename: str
    isolation: str

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        return await self.session.run(self.rename + code, timeout=timeout)

    async def close(self) -> None:
        await self.session.close()


@dataclass(frozen=True, slots=True)
class Case:
    """One promise: `check(arena)` raises AssertionError when it is broken. Needs every claim in `needs`."""

    name: str
    group: str
    needs: frozenset[Claim]
    check: Callable[[Arena], Awaitable[None]]
    alone: bool  # no other case may run beside it: it loads the machine or counts what the host holds


CASES: list[Case] = []


def case(name: str, *needs: Claim, alone: bool = False) -> Callable[[Callable[[Arena], Awaitable[None]]], Case]:
    """Register a case under a name that reads as a promise."""

    def register(check: Callable[[Arena], Awaitable[None]]) -> Case:
        group = check.__module__.rpartition(".")[2]
        made = Case(name, group, frozenset(needs), check, alone)
        CASES.append(made)
        return made

    return register


@contextlib.contextmanager
def canaries(secret: str) -> Iterator[tuple[str, ...]]:
    """Plant the secret where host data lives: a variable of this process, and files that everyone may read."""
    with contextlib.ExitStack() as stack:
        paths = []
        for parent in (tempfile.gettempdir(), os.path.expanduser("~")):
            with contextlib.suppress(OSError):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".canary-", dir=parent))
                os.chmod(folder, 0o755)
                file = Path(folder, "canary")
                file.write_text(secret, encoding="utf-8")
                file.chmod(0o644)
                paths.append(str(file))
        os.environ["SOLOSTREAM_CANARY"] = secret
        try:
            yield tuple(paths)
        finally:
            del os.environ["SOLOSTREAM_CANARY"]
