"""`solostream sandbox check | run | serve`."""

from __future__ import annotations

import asyncio
import json as json_format
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from solostream.errors import UserError
from solostream.sandbox.server.settings import SERVER_LIMITS, Settings
from solostream.sandbox.types import Execution, Limits

if TYPE_CHECKING:
    from solostream.sandbox.conformance.suite import CaseVerdict

# status -> exit code of `sandbox run`; 124 is what timeout(1) says, 137 what a shell says of SIGKILL
_EXIT = {"ok": 0, "error": 1, "timeout": 124, "memory": 137, "killed": 137}


def check(
    spec: Annotated[str, tyro.conf.Positional],
    /,
    json: bool = False,
    only: str = "",
    jobs: int = 4,
) -> int:
    """Judge a backend by the conformance and abuse suite. Exit code 1 when a case fails.

    Args:
        spec: fork, docker, docker-jupyter, jupyter, http://host:port or package.module:Factory.
        json: print one JSON object instead of the table.
        only: run the cases whose name contains this, or one group of them.
        jobs: cases that run at a time.
    """
    from solostream.sandbox.conformance import check as judge

    report = asyncio.run(
        judge(spec, only=only, jobs=_at_least("jobs", jobs, 1), tell=(lambda verdict: None) if json else _tell)
    )
    if json:
        print(json_format.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        count = {status: sum(v.status == status for v in report.cases) for status in ("pass", "fail", "skip")}
        print(f"{report.backend} ({report.isolation}): " + ", ".join(f"{n} {status}" for status, n in count.items()))
    return 1 if report.failed else 0


def _tell(verdict: CaseVerdict) -> None:
    detail = f"  {verdict.detail}" if verdict.detail else ""
    print(f"{verdict.status:<4} {verdict.ms:>6} ms  {verdict.group:<9}  {verdict.name}{detail}", flush=True)


def run(
    spec: Annotated[str, tyro.conf.Positional],
    file: Annotated[str, tyro.conf.Positional],
    /,
    timeout: float | None = None,
) -> int:
    """Run one file of Python in a sandbox and print its streams and result.

    Exit code: 0 ok, 1 the code raised, 124 timed out, 137 killed or out of memory.

    Args:
        spec: which sandbox, as for `sandbox check`.
        file: path of the program; `-` reads it from standard input.
        timeout: seconds that it may run (default: the sandbox's own limit).
    """
    try:
        code = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; name a Python file, or - for standard input") from error
    seen = asyncio.run(_run(spec, code, timeout))
    sys.stdout.write(seen.stdout)
    sys.stderr.write(seen.stderr)
    if seen.result is not None:
        print(seen.result)
    if seen.error is not None:
        print(seen.error.traceback.rstrip() or f"{seen.error.name}: {seen.error.message}", file=sys.stderr)
    elif not seen.ok:
        print(f"solostream: the code ended as {seen.status} after {seen.duration_s:.1f} s", file=sys.stderr)
    for name in ("stdout", "stderr", "result"):
        if getattr(seen, name + "_truncated"):
            print(f"solostream: {name} was cut at the sandbox's limit", file=sys.stderr)
    return _EXIT[seen.status]


def serve(
    sandbox: str = "fork",
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str = "",
    token_file: Path | None = None,
    workers: int = 1,
    sessions: int = 1024,
    running: int = 64,
    queue: int = 1024,
    queue_timeout: float = 30.0,
    idle: float = 600.0,
    max_timeout: float = 600.0,
    max_body_mb: float = 32.0,
    limits: Limits = SERVER_LIMITS,
) -> int:
    """HTTP server: sessions API and SandboxFusion wire format. Stops on SIGINT or SIGTERM.

    Args:
        sandbox: the backend, as for `sandbox check`.
        host: address to listen on; anything but loopback should have a token.
        port: TCP port; 0 takes a free one.
        token: bearer token that clients must send (better: the environment's SOLOSTREAM_SANDBOX_TOKEN, or a file).
        token_file: file that holds the token.
        workers: server processes behind the port.
        sessions: open at a time, in each worker.
        running: calls at a time, in each worker.
        queue: calls that may wait for their turn, in each worker; more get 503 (504 in SandboxFusion's format).
        queue_timeout: seconds that a call may wait before it gets 504.
        idle: seconds after which a session that nobody calls is closed.
        max_timeout: the longest time-out in seconds that a request may ask for.
        max_body_mb: the largest request, and the largest sum of fetched files.
        limits: of one session.
    """
    try:
        from solostream.sandbox.server.workers import serve as serve_settings
    except ModuleNotFoundError as error:
        raise UserError(f"the server needs the package '{error.name}'; pip install 'solostream[server]'") from error
    settings = Settings(
        sandbox=sandbox,
        host=host,
        port=port,
        token=_token(token, token_file),
        workers=_at_least("workers", workers, 1),
        sessions=_at_least("sessions", sessions, 1),
        running=_at_least("running", running, 1),
        queue=_at_least("queue", queue, 0),
        queue_timeout_s=_more_than_zero("queue-timeout", queue_timeout),
        idle_s=_more_than_zero("idle", idle),
        max_timeout_s=_more_than_zero("max-timeout", max_timeout),
        max_body_mb=_more_than_zero("max-body-mb", max_body_mb),
        limits=limits,
    )
    return serve_settings(settings)


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise UserError(f"--{name} is at least {least}, not {value}")
    return value


def _more_than_zero(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"--{name} is more than 0 and finite, not {value}")
    return value


def _token(token: str, file: Path | None) -> str:
    """From the flag, the file or the environment, in this order. Raises UserError."""
    if file is None:
        return token or os.environ.get("SOLOSTREAM_SANDBOX_TOKEN", "")
    try:
        read = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --token-file: {error}") from error
    if not read:
        raise UserError(f"--token-file {file} is empty; write the token into it")
    return read


async def _run(spec: str, code: str, timeout: float | None) -> Execution:
    from solostream.sandbox.spec import open_sandbox

    sandbox = open_sandbox(spec)
    try:
        session = await sandbox.open()
        try:
            return await session.run(code, timeout=timeout)
        finally:
            await session.close()
    finally:
        await sandbox.close()
