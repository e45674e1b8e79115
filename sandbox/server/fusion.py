"""SandboxFusion's wire format: `/run_code`, `/run_jupyter`, `/v1/ping`.

Source: the requests and responses of SandboxFusion's `sandbox_api.py`, and verl's client, which concatenates stdout and
stderr, wants `run_result.status == "Finished"` and retries nothing but 504. Departures, all of them repairs: outputs
of any size and any bytes arrive (cut at the sandbox's limit, which `message` then says); `files` and `fetch_files` are
relative paths inside the session's folder; no variable of the server's environment is visible; `memory_limit_MB`
(memory beyond the idle interpreter's) and `cell_timeout` hold; `return_code` is null on a time-out, -signal on death.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import binascii
import re
import time
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, Field

from solostream.errors import SandboxError
from solostream.sandbox.server import program
from solostream.sandbox.server.guard import unless_gone
from solostream.sandbox.server.replies import AsciiJSON
from solostream.sandbox.server.sessions import Busy, Sessions
from solostream.sandbox.types import Execution, Session

router = APIRouter()
FETCH_S = 10.0


def _path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is not a path inside the session's folder")
    return path


def _base64(content: str | None) -> str:
    try:
        base64.b64decode(content or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from None
    return content or ""


def _text(value: Any) -> str:
    # Not `str`: pydantic refuses the lone surrogates that a JSON escape may carry.
    if not isinstance(value, str):
        raise ValueError("a string is needed")
    return value


Path = Annotated[str, AfterValidator(_path)]
Text = Annotated[Any, AfterValidator(_text)]
Files = dict[Path, Annotated[str | None, AfterValidator(_base64)]]


class RunCode(BaseModel):
    code: Text
    language: str = "python"
    run_timeout: float = Field(10, gt=0)
    compile_timeout: float = 10  # there is nothing to compile
    memory_limit_MB: int = -1
    stdin: Text | None = None
    files: Files = {}
    fetch_files: list[Path] = []


class RunJupyter(BaseModel):
    cells: list[Text]
    cell_timeout: float = Field(0, ge=0)  # 0: no limit but the total's
    total_timeout: float = Field(45, gt=0)
    memory_limit_MB: int = -1
    kernel: str = "python3"
    files: Files = {}
    fetch_files: list[Path] = []


@router.get("/v1/ping")
async def ping() -> Response:
    return AsciiJSON("pong")


@router.post("/run_code")
async def run_code(body: RunCode, request: Request) -> Response:
    return await _answer(request, _run_code(request.app.state.sessions, body))


@router.post("/run_jupyter")
async def run_jupyter(body: RunJupyter, request: Request) -> Response:
    return await _answer(request, _run_jupyter(request.app.state.sessions, body))


async def _answer(request: Request, work: Any) -> Response:
    try:
        reply = await unless_gone(request, work)
    except Busy as busy:  # 504 even when refused at once: verl's client retries nothing else
        raise Busy(504, str(busy), busy.retry_after_s) from None
    except SandboxError as error:
        request.app.state.sessions.metrics.errors.inc()
        reply = _reply("SandboxError", str(error))
    return AsciiJSON(reply)


def _reply(status: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"status": status, "message": message, "executor_pod_name": None, "files": {}, **more}


async def _run_code(sessions: Sessions, body: RunCode) -> dict[str, Any]:
    nothing = {"compile_result": None, "run_result": None}
    if body.language != "python":
        return _reply("SandboxError", f"language '{body.language}' is not available here; use 'python'", **nothing)
    sessions.check_timeout(body.run_timeout)
    async with sessions.once() as session:
        code = program.script(body.code, body.stdin or "", body.files, body.memory_limit_MB)  # type: ignore[arg-type]
        seen = await sessions.run(session, code, body.run_timeout)
        files = await _fetch(session, body.fetch_files, sessions)
    result = _command(seen)
    status = "Success" if result["return_code"] == 0 else "Failed"
    return _reply(status, _cut(seen), compile_result=None, run_result=result, files=files)


def _command(seen: Execution) -> dict[str, Any]:
    """An execution of `program.script` as a CommandRunResult."""
    stderr, code = seen.stderr, None
    if seen.ok and seen.result is not None and seen.result.isdigit():
        code = int(seen.result)
    elif seen.status == "error":  # outside of the code: no room for its files, or an interrupt of its own
        stderr, code = stderr + (seen.error.traceback if seen.error else ""), 1
    elif seen.status == "memory":
        code = 1
    elif seen.status == "killed":
        code = _death(seen.error.message if seen.error else "")
    return {
        "status": "TimeLimitExceeded" if seen.status == "timeout" else "Finished",
        "execution_time": seen.duration_s,
        "return_code": code,
        "stdout": seen.stdout,
        "stderr": stderr,
    }


def _death(message: str) -> int:
    """A backend that knows says "signal 11" or "code 3"; of one that does not, SIGKILL is the best guess."""
    found = re.search(r"\b(signal|code) (\d+)", message)
    if found is None:
        return -9
    return -int(found[2]) if found[1] == "signal" else int(found[2])


def _cut(seen: Execution) -> str:
    cut = [name for name in ("stdout", "stderr") if getattr(seen, name + "_truncated")]
    return f"{' and '.join(cut)} cut at the sandbox's limit" if cut else ""


async def _run_jupyter(sessions: Sessions, body: RunJupyter) -> dict[str, Any]:
    if body.kernel != "python3":
        return _reply("SandboxError", f"kernel '{body.kernel}' is not available here; use 'python3'", cells=[])
    sessions.check_timeout(body.total_timeout)
    start = time.monotonic()
    cells: list[dict[str, Any]] = []
    timed_out = False
    async with sessions.once() as session:
        prepared = await session.run(program.notebook(body.files, body.memory_limit_MB))  # type: ignore[arg-type]
        if not prepared.ok:
            raise SandboxError(f"the files could not be written: {prepared.error and prepared.error.message}")
        for code in body.cells:
            left = body.total_timeout - (time.monotonic() - start)
            if left <= 0:
                timed_out = True
                break
            seen = await sessions.run(session, code, min(left, body.cell_timeout or left))
            cells.append(_cell(seen))
            timed_out = timed_out or seen.status == "timeout"
        files = await _fetch(session, body.fetch_files, sessions)
    driver = {
        "status": "TimeLimitExceeded" if timed_out else "Finished",
        "execution_time": time.monotonic() - start,
        "return_code": None if timed_out else 0,
        "stdout": "",
        "stderr": "",
    }
    return _reply("Failed" if timed_out else "Success", driver=driver, cells=cells, files=files)


def _cell(seen: Execution) -> dict[str, Any]:
    error = []
    if seen.error is not None:
        lines = seen.error.traceback.splitlines()
        error = [{"ename": seen.error.name, "evalue": seen.error.message, "traceback": lines}]
    elif not seen.ok:
        name = "TimeoutError" if seen.status == "timeout" else "DeadKernelError"
        error = [{"ename": name, "evalue": f"the cell ended as {seen.status}", "traceback": []}]
    display = [] if seen.result is None else [{"text/plain": seen.result}]
    return {"stdout": seen.stdout, "stderr": seen.stderr, "display": display, "error": error}


async def _fetch(session: Session, paths: list[str], sessions: Sessions) -> dict[str, str]:
    """path -> base64 of the files that exist, in parts that fit a result; all of them within a body's size."""
    part = _part(sessions.sandbox.limits.output_bytes)
    room = int(sessions.settings.max_body_mb * (1 << 20))
    files = {}
    for path in paths:
        content = bytearray()
        while True:
            seen = await asyncio.wait_for(session.run(program.read(path, len(content), part), timeout=FETCH_S), 60)
            data = _decoded(seen)
            if data is None:
                break
            content += data
            room -= len(data)
            if room < 0:
                raise SandboxError("fetch_files are larger than a body may be; fetch less, or raise --max-body-mb")
            if len(data) < part:
                files[path] = base64.b64encode(content).decode()
                break
    return files


def _part(output_bytes: int) -> int:
    """Bytes whose base64 in quotes fits a result."""
    return max(3, (output_bytes - 16) // 4 * 3)


def _decoded(seen: Execution) -> bytes | None:
    """The result of `program.read`; None for no file. What a hostile session makes up is not base64: None too."""
    try:
        return base64.b64decode(ast.literal_eval(seen.result or ""), validate=True)
    except (ValueError, SyntaxError, TypeError, binascii.Error):
        return None
