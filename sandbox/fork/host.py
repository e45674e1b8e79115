"""`ForkSandbox`: sessions forked from a warm interpreter, confined by the kernel.

Protects, in the tier "namespaces", the host's files, environment, network, processes and other sessions from the code,
and bounds its memory, processes, disk, output and time. It does not protect from a hole in the Linux kernel, from
timing side channels between sessions, and CPU time is bounded by the time-out only. What the weaker tiers leave open is
said in docs/sandbox.md and left out of `claims`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import resource
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from solostream.errors import SandboxError, UserError
from solostream.sandbox.fork.child.isolation import landlock
from solostream.sandbox.fork.process import Process
from solostream.sandbox.fork.server import ForkOptions, ForkServer, probe
from solostream.sandbox.types import Claim, Execution, Limits

log = logging.getLogger("solostream.sandbox.fork")

# What models write for mathematics. Cheap to have: it is imported once and shared by all sessions.
PREIMPORT = (
    *("numpy", "sympy", "math", "cmath", "random", "itertools", "functools", "collections", "fractions", "decimal"),
    *("statistics", "operator", "re", "string", "json", "heapq", "bisect", "datetime", "time", "typing", "dataclasses"),
    *("subprocess", "textwrap", "copy", "threading", "tempfile", "glob", "multiprocessing", "asyncio", "inspect"),
)
_told: set[str] = set()  # modules of which it was said that sessions cannot import them
_TIERS = ("auto", "namespaces", "landlock", "rlimits")
_LOST: dict[str, frozenset[Claim]] = {  # what a tier does not hold
    "namespaces": frozenset(),
    "landlock": frozenset({"disk", "processes", "sessions"}),
    "rlimits": frozenset({"disk", "processes", "sessions", "filesystem"}),
}


def _confines_signals(isolation: str) -> bool:
    """Without a pid namespace, only Landlock since ABI 6 (Linux 6.12) and seccomp together do."""
    version = next((word[8:] for word in isolation.split("+") if word.startswith("landlock")), "0")
    return int(version) >= 6 and "seccomp" in isolation


def _importable(names: list[str]) -> tuple[str, ...]:
    """Those that this process can import."""
    found = []
    for name in names:
        with contextlib.suppress(ImportError, ValueError):  # of a parent; a module without a spec
            if importlib.util.find_spec(name) is not None:
                found.append(name)
    return tuple(found)


def _crashes_start_helpers() -> bool:
    """Where core dumps go to a pipe, only a limit of 1 keeps crashes from starting a program on the host (core(5)), and
    a user whose hard limit is 0 cannot set it.
    """
    try:
        piped = Path("/proc/sys/kernel/core_pattern").read_text(encoding="utf-8").startswith("|")
    except OSError:
        return False
    return piped and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 and os.geteuid() != 0


class ForkSandbox:
    """Fork server and pool. Made without side effects; the server starts with the first `open`.

    Args:
        limits: of each session.
        isolation: the tier, or "auto" for the strongest that this machine grants.
        allow_unisolated: accept the tier "rlimits", where code can read and write the files of its user.
        snapshot: fork before each call, so that a time-out or crash rolls the session back (some ms a call).
        pool: sessions that are forked ahead of demand.
        preimport: modules that every session finds imported; a missing one is skipped.
        landlock_abi: the newest version of Landlock to use; a lower one shows what an older kernel holds.

    Raises: UserError for a bad argument, or, at first use, for a tier that this machine does not grant.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        isolation: str = "auto",
        allow_unisolated: bool = False,
        snapshot: bool = False,
        pool: int = 8,
        preimport: Sequence[str] = PREIMPORT,
        landlock_abi: int = landlock.NEWEST,
    ) -> None:
        if isolation not in _TIERS:
            raise UserError(f"isolation='{isolation}' is unknown; one of {', '.join(_TIERS)}")
        if pool < 1:
            raise UserError(f"pool={pool} must be at least 1")
        self.limits = limits or Limits()
        self._options = ForkOptions(isolation, self.limits, snapshot, pool, tuple(preimport), landlock_abi)
        self._allow_unisolated = allow_unisolated
        self._server: ForkServer | None = None
        # Of `preimport`, once started: what this process can import and sessions cannot.
        self.unseen: tuple[str, ...] = ()
        self._starting = threading.Lock()
        self._sessions: set[ForkSession] = set()

    @property
    def tier(self) -> str:
        """One of "namespaces", "landlock" and "rlimits". Raises UserError where it is refused."""
        tier, _ = probe(self._options.isolation, self._options.landlock_abi)
        if tier == "rlimits" and not self._allow_unisolated:
            raise UserError(
                "this machine grants neither namespaces nor Landlock, so code could read and write your files; use the "
                "'docker' sandbox, or pass allow_unisolated=True where that is acceptable (inside a container)"
            )
        if tier != "namespaces" and self._options.snapshot:
            raise UserError(f"snapshot=True needs the tier 'namespaces', and this one is '{tier}'")
        return tier

    @property
    def isolation(self) -> str:
        """What is in force, for example "namespaces+seccomp+landlock7+rlimits+cgroup"."""
        return probe(self._options.isolation, self._options.landlock_abi)[1]

    @property
    def claims(self) -> frozenset[Claim]:
        """What the tier in force keeps, less what the options give up."""
        held = frozenset(get_args(Claim)) - _LOST[self.tier]
        if self._options.snapshot:
            held -= {"fork"}
        if self.tier != "namespaces" and "seccomp" not in self.isolation:
            held -= {"memory"}  # a process may leave the group in which it is counted
        if self.tier != "namespaces" and not _confines_signals(self.isolation):
            # Who shares the sessions' user can be killed by them, whoever is to clean up included.
            held -= {"host"} if os.geteuid() == 0 else {"host", "orphans"}
        if _crashes_start_helpers():
            held -= {"host"}
        return held | {"memory"} if "cgroup" in self.isolation else held

    async def open(self) -> ForkSession:
        """A fresh session. Raises SandboxError, UserError."""
        session = ForkSession(self, await self._process())
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        """Kill every session and the fork server. Idempotent; a later `open` starts anew."""
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)

    async def _process(self) -> Process:
        """A ready process from the pool; a dead fork server is replaced."""
        server = self._server
        if server is None or not server.alive:
            server = await asyncio.to_thread(self._start)
        return await Process.take(server, self.limits.output_bytes)

    def _start(self) -> ForkServer:
        with self._starting:
            old = self._server
            if old is not None and old.alive:
                return old
            if old is not None:
                old.stop()
            tier = self.tier
            if tier == "rlimits":
                log.warning("ISOLATION IS WEAK (%s): code can read and write the files of its user", self.isolation)
            elif "host" not in self.claims:
                log.warning(
                    "ISOLATION IS WEAK (%s): code can signal, and so end, processes of its user; what mends it: user "
                    "namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0), Linux 6.12, or the 'docker' "
                    "sandbox",
                    self.isolation,
                )
            self._server = ForkServer(replace(self._options, isolation=tier))
            self._tell_unseen(self._server)
            return self._server

    def _tell_unseen(self, server: ForkServer) -> None:
        """Say once a process which modules this Python can import and its sessions cannot."""
        self.unseen = _importable(sorted(set(self._options.preimport) - server.resident))
        if news := tuple(name for name in self.unseen if name not in _told):
            _told.update(news)
            log.warning(
                "code in the sandbox cannot import %s, although this program can: sessions see the packages of %s, "
                "not PYTHONPATH, packages of a user, or folders of a .pth file; remedy: a virtual environment, or "
                "%s -I -m pip install %s",
                " and ".join(news),
                sys.prefix,
                sys.executable,
                " ".join(name.partition(".")[0] for name in news),
            )

    def _forget(self, session: ForkSession) -> None:
        self._sessions.discard(session)


class ForkSession:
    """One stateful interpreter. After its process has died the next call gets a fresh one."""

    def __init__(self, sandbox: ForkSandbox, process: Process) -> None:
        self.isolation = process.isolation
        self._sandbox = sandbox
        self._process: Process | None = process
        self._turn = asyncio.Lock()
        self._closed = False

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """Run `code`; see `solostream.sandbox.types.Session`. Calls to one session take turns."""
        limits = self._sandbox.limits
        timeout = limits.seconds(timeout)
        async with self._turn:
            if self._closed:
                raise SandboxError("the session is closed")
            process = self._process
            if process is None:
                process = self._process = await self._sandbox._process()
                if self._closed:
                    await process.kill()
                    raise SandboxError("the session is closed")
            try:
                execution = await process.run(code, timeout, limits.output_bytes, self._sandbox._options.snapshot)
            except BaseException:
                # Cancelled or broken in the middle of a call: whatever runs there must not go on.
                self._process = None
                await asyncio.shield(process.kill())
                raise
            if process.dead:
                self._process = None
            if self._closed:
                raise SandboxError("the session was closed while it ran")
            return execution

    async def fork(self) -> ForkSession:
        """A live copy of this session: every variable as it is now, both go on by themselves, for the price of a fork.

        Threads are not copied. Copies share their original's files and limits, and count as one session against those.
        Raises SandboxError, UserError.
        """
        if self._sandbox._options.snapshot:
            raise UserError("a session with snapshot=True cannot be copied; open the sandbox without it")
        async with self._turn:
            if self._closed:
                raise SandboxError("the session is closed")
            if self._process is None:
                return await self._sandbox.open()  # there is nothing to copy
            copy = await self._process.fork(self._sandbox.limits.output_bytes)
        session = ForkSession(self._sandbox, copy)
        self._sandbox._sessions.add(session)
        return session

    async def close(self) -> None:
        """Kill everything the session started; returns when it is gone. Idempotent."""
        self._closed = True
        self._sandbox._forget(self)
        if self._process is not None:
            await self._process.kill()
