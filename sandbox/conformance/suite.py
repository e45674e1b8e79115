"""Runs the cases against one backend and looks at the host after each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from solostream.errors import SandboxError, UserError
from solostream.sandbox.conformance import host
from solostream.sandbox.conformance.case import CASES, Arena, Case, Skip, brief, canaries
from solostream.sandbox.types import Limits, Sandbox, Session

# What `check` opens a spec with: a generous clock (a case that is about time names its own), little of the rest.
LIMITS = Limits(timeout_s=20, memory_mb=512, processes=64, disk_mb=32, open_files=128, output_bytes=65_536)
CASE_TIMEOUT_S = 60.0
STALL_S = 5.0  # the host's event loop must never stand still for longer
DELETE_S = 20.0  # that a backend may take to delete many files
JOBS = 4


@dataclass(frozen=True, slots=True)
class CaseVerdict:
    """How one case ended: `detail` says why it was skipped or what broke; `ms` is its wall time."""

    name: str
    status: Literal["pass", "fail", "skip"]
    detail: str
    ms: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The verdicts on one backend."""

    backend: str
    isolation: str
    cases: tuple[CaseVerdict, ...]

    @property
    def failed(self) -> tuple[CaseVerdict, ...]:
        """The cases that did not pass."""
        return tuple(verdict for verdict in self.cases if verdict.status == "fail")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `sandbox check --json`."""
        keys = ("name", "status", "detail", "ms")
        cases = [{key: getattr(verdict, key) for key in keys} for verdict in self.cases]
        return {"backend": self.backend, "isolation": self.isolation, "cases": cases}


async def check(
    backend: str | Callable[[], Sandbox],
    *,
    name: str | None = None,
    only: str | tuple[str, ...] = "",
    jobs: int = JOBS,
    tell: Callable[[CaseVerdict], None] = lambda verdict: None,
) -> Report:
    """Judge a backend by every case whose name contains `only` (or one of several), or whose group it is.

    Args:
        backend: a spec string, or a function that opens a sandbox (which is closed here). The function is called once
            the canaries are planted, so that what the sandbox starts could inherit them.
        name: what the report calls the backend (default: the spec).
        jobs: cases that run at a time; those that load the machine always run alone.
        tell: called with each verdict as it falls.

    Raises: UserError when nothing matches `only`, SandboxError when the backend does not open.
    """
    words = (only,) if isinstance(only, str) else only
    chosen = [case for case in CASES if any(word in case.name or word == case.group for word in words)]
    if not chosen:
        raise UserError(f"no case matches '{', '.join(words)}'; `solostream sandbox check SPEC` lists their names")
    spec = backend if isinstance(backend, str) else None
    called = str(name or spec or getattr(backend, "__name__", "sandbox"))
    secret = "canary" + secrets.token_hex(8)
    children, descriptors = set(host.descendants(os.getpid())), host.descriptors()
    verdicts: list[CaseVerdict] = []

    def add(verdict: CaseVerdict) -> None:
        verdicts.append(verdict)
        tell(verdict)

    with canaries(secret) as hidden:
        sandbox = _open(spec) if spec is not None else backend()  # type: ignore[operator]
        try:
            await (await sandbox.open()).close()  # a backend may learn its claims only when it starts
            async with _witness(sandbox) as witness:
                make = _arenas(sandbox, spec, secret, hidden)
                await _run_all(chosen, make, witness, jobs, add)
            isolation = sandbox.isolation
        finally:
            await asyncio.wait_for(sandbox.close(), 60)
        add(await _timed("nothing is left after close", "after", lambda: _nothing_left(sandbox, children, descriptors)))
    return Report(called, isolation, tuple(verdicts))


def _open(spec: str) -> Sandbox:
    from solostream.sandbox.spec import open_sandbox

    return open_sandbox(spec, limits=LIMITS)


def _arenas(sandbox: Sandbox, spec: str | None, secret: str, hidden: tuple[str, ...]) -> Callable[[], Arena]:
    run, count = secrets.token_hex(3), iter(range(1000))
    return lambda: Arena(sandbox, f"sx{run}{next(count):03d}", spec, secret, hidden)


async def _run_all(
    chosen: list[Case], make: Callable[[], Arena], witness: Witness, jobs: int, add: Callable[[CaseVerdict], None]
) -> None:
    free = asyncio.Semaphore(jobs)

    async def one(case: Case) -> None:
        async with free:
            add(await _judge(case, make(), witness))

    await asyncio.gather(*(one(case) for case in chosen if not case.alone))
    for case in chosen:
        if case.alone:
            add(await _judge(case, make(), witness))


async def _judge(case: Case, arena: Arena, witness: Witness) -> CaseVerdict:
    missing = case.needs - arena.sandbox.claims
    if missing:
        return CaseVerdict(case.name, "skip", f"not claimed: {', '.join(sorted(missing))}", 0, case.group)

    async def body() -> None:
        async with _no_stall():
            try:
                await asyncio.wait_for(case.check(arena), CASE_TIMEOUT_S)
            except BaseException:
                with contextlib.suppress(Exception):  # the first failure is the one to tell
                    await _clean(arena)
                raise
            await _clean(arena)
            await _afterwards(arena, witness)

    return await _timed(case.name, case.group, body)


async def _timed(name: str, group: str, body: Callable[[], Awaitable[None]]) -> CaseVerdict:
    start = time.monotonic()
    status: Literal["pass", "fail", "skip"] = "pass"
    detail = ""
    try:
        await body()
    except Skip as reason:
        status, detail = "skip", str(reason)
    except AssertionError as broken:
        status, detail = "fail", str(broken)
    except TimeoutError:
        status, detail = "fail", "no answer in time"
    except SandboxError as error:
        status, detail = "fail", f"hostile code became an infrastructure failure: {error}"
    except Exception as error:
        status, detail = "fail", f"{type(error).__name__}: {error}"
    return CaseVerdict(name, status, detail, round(1000 * (time.monotonic() - start)), group)


async def _clean(arena: Arena) -> None:
    """Close the case's sessions; then no process and no file may carry its tag. What is left is removed here."""
    try:
        await arena.close()
    finally:
        left = await host.settle(lambda: host.tagged(arena.tag)) if "orphans" in arena.sandbox.claims else {}
        host.kill(host.tagged(arena.tag))
        if "filesystem" in arena.sandbox.claims:
            await host.settle(lambda: host.files(arena.tag), DELETE_S)
        files = host.remove(host.files(arena.tag))
    assert not left, f"processes are left after close (pid: state): {left}"
    assert not files or "filesystem" not in arena.sandbox.claims, f"files are left on the host: {files}"


async def _afterwards(arena: Arena, witness: Witness) -> None:
    """The next session works, and a session that was open all along still has its state."""
    session = await asyncio.wait_for(arena.sandbox.open(), 30)
    try:
        seen = await asyncio.wait_for(session.run("print(6 * 7)"), 30)
        assert seen.stdout == "42\n", f"the next session does not work: {brief(seen)}"
    finally:
        await asyncio.wait_for(session.close(), 30)
    await witness.answers()


@dataclass(slots=True)
class Witness:
    """A bystander: a session that is open during all cases and must notice none of them."""

    session: Session | None  # None when the backend keeps no state
    word: str
    lock: asyncio.Lock

    async def answers(self) -> None:
        """Assert that a session beside the cases still knows its variable: no case may disturb others."""
        if self.session is not None:
            async with self.lock:
                seen = await asyncio.wait_for(self.session.run("word"), 30)
            assert seen.result == repr(self.word), f"a bystander session was harmed: {brief(seen)}"


@contextlib.asynccontextmanager
async def _witness(sandbox: Sandbox) -> AsyncIterator[Witness]:
    word = secrets.token_hex(4)
    session = await sandbox.open() if "state" in sandbox.claims else None
    try:
        if session is not None:
            await session.run(f"word = {word!r}")
        yield Witness(session, word, asyncio.Lock())
    finally:
        if session is not None:
            await session.close()


@contextlib.asynccontextmanager
async def _no_stall() -> AsyncIterator[None]:
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            worst = max(worst, time.monotonic() - before - 0.05)

    ticker = asyncio.create_task(tick())
    try:
        yield
        await asyncio.sleep(0)
    finally:
        ticker.cancel()
    assert worst < STALL_S, f"the host's event loop stood still for {worst:.1f} s"


async def _nothing_left(sandbox: Sandbox, children: set[int], descriptors: int) -> None:
    """After the sandbox's close: no child of ours, no container, no descriptor more than before it was opened."""
    await asyncio.wait_for(sandbox.close(), 30)  # idempotent
    left = await host.settle(lambda: host.descendants(os.getpid(), apart=children))
    assert not left, f"processes are left (pid: name): {left}"
    containers = await host.settle(host.containers)
    assert not containers, f"containers are left: {containers}"
    # Libraries open a few for good: a selector, a name service, the sockets of ZeroMQ. Far fewer than cases ran.
    extra = await host.settle(lambda: max(0, host.descriptors() - descriptors - 16))
    assert not extra, f"{extra} descriptors too many are left"
