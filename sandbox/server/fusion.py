"""SandboxFusion's wire format: `/run_code`, `/run_jupyter`, `/v1/ping`.

Source: the requests and responses of SandboxFusion's `sandbox_api.py`, and verl's client, which concatenates stdout and
stderr, wants `run_result.status == "Finished"` and retries nothing but 504. Departures, all of them repairs: outputs
of any size and any bytes arrive (cut at the sandbox's limit, which `message` then says); `files` and `fetch_files` are
relative paths inside the session's folder; no variable of the server's environment is visible; `memory_limit_MB`
(memory beyond the idle interpreter's) and `cell_timeout` hold; `return_code` is null on a time-out, -signal on death.
"""

from __future__ import annotations

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
FETCH_S = 10.0  # for all files of a request together, on top of its time-out: the code's, not the server's, time


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
    """The body of /run_code. Times in seconds; fields of SandboxFusion that mean nothing here are accepted."""

    code: Text
    language: str = "python"
    run_timeout: float = Field(10, gt=0, allow_inf_nan=False)
    compile_timeout: float = 10  # there is nothing to compile
    memory_limit_MB: int = -1
    stdin: Text | None = None
    files: Files = {}
    fetch_files: list[Path] = []


class RunJupyter(BaseModel):
    """The body of /run_jupyter: cells run one after the other in one fresh session. Times in seconds."""

    cells: list[Text]
    cell_timeout: float = Field(0, ge=0, allow_inf_nan=False)  # 0: no limit but the total's
    total_timeout: float = Field(45, gt=0, allow_inf_nan=False)
    memory_limit_MB: int = -1
    kernel: str = "python3"
    files: Files = {}
    fetch_files: list[Path] = []


@router.get("/v1/ping")
async def ping() -> Response:
    """SandboxFusion's sign of life: "pong"."""
    return AsciiJSON("pong")


@router.post("/run_code")
async def run_code(body: RunCode, request: Request) -> Response:
    """One program in a fresh session, in SandboxFusion's wire format."""
    return await _answer(request, _run_code(request.app.state.sessions, body))


@router.post("/run_jupyter")
async def run_jupyter(body: RunJupyter, request: Request) -> Response:
    """Several cells in one fresh session, in SandboxFusion's wire format."""
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
        stdin = (body.stdin or "").encode("utf-8", "surrogatepass")
        files = body.files | ({program.STDIN: base64.b64encode(stdin).decode()} if stdin else {})
        seen = await _write(session, files)
        if seen.ok:
            code = program.script(body.code, body.files, body.memory_limit_MB)
            seen = await sessions.run(session, code, body.run_timeout)
        fetched, missed = await _fetch(session, body.fetch_files, sessions)
    result = _command(seen)
    status = "Success" if result["return_code"] == 0 else "Failed"
    message = "; ".join(filter(None, (_cut(seen), missed)))
    return _reply(status, message, compile_result=None, run_result=result, files=fetched)


def _command(seen: Execution) -> dict[str, Any]:
    """An execution of `program.script` as a CommandRunResult."""
    stderr, code = seen.stderr, None
    if seen.ok:  # what hostile code makes of its exit code is no exit code
        code = int(seen.result) if re.fullmatch("[0-9]{1,3}", seen.result or "") else 1  # type: ignore[arg-type]
    elif seen.status == "error":  # outside of the code: no room for its files, or an interrupt of its own
        error = seen.error
        stderr, code = stderr + (error.traceback or f"{error.name}: {error.message}\n" if error else ""), 1
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
    found = re.search(r"\b(signal|code) ([0-9]{1,3})\b", message)
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
    timed_out, left_out = False, ""
    room = _room(sessions)
    async with sessions.once() as session:
        prepared = await _write(session, body.files)
        if prepared.ok:
            prepared = await session.run(program.notebook(body.memory_limit_MB))
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
            room -= _size(seen)
            if room < 0 and len(cells) < len(body.cells):
                left_out = f"the cells say more than a body may hold: {len(body.cells) - len(cells)} are left out"
                break
        files, missed = await _fetch(session, body.fetch_files, sessions)
    driver = {
        "status": "TimeLimitExceeded" if timed_out else "Finished",
        "execution_time": time.monotonic() - start,
        "return_code": None if timed_out else 0,
        "stdout": "",
        "stderr": "",
    }
    status = "Failed" if timed_out or left_out else "Success"
    message = "; ".join(filter(None, (left_out, missed)))
    return _reply(status, message, driver=driver, cells=cells, files=files)


def _room(sessions: Sessions) -> int:
    """Bytes that a reply may gather from several calls: as many as a body may have."""
    return int(sessions.settings.max_body_mb * (1 << 20))


def _size(seen: Execution) -> int:
    shown = sum(len(form) for bundle in seen.display for form in bundle.values())
    error = len(seen.error.message) + len(seen.error.traceback) if seen.error else 0
    return len(seen.stdout) + len(seen.stderr) + len(seen.result or "") + shown + error


def _cell(seen: Execution) -> dict[str, Any]:
    error = []
    if seen.error is not None:
        lines = seen.error.traceback.splitlines()
        error = [{"ename": seen.error.name, "evalue": seen.error.message, "traceback": lines}]
    elif not seen.ok:
        name = "TimeoutError" if seen.status == "timeout" else "DeadKernelError"
        error = [{"ename": name, "evalue": f"the cell ended as {seen.status}", "traceback": []}]
    display: list[dict[str, str]] = [dict(bundle) for bundle in seen.display]
    if seen.result is not None:
        if display and "text/plain" not in display[-1]:  # the result's own richer forms
            display[-1]["text/plain"] = seen.result
        else:
            display.append({"text/plain": seen.result})
    return {"stdout": seen.stdout, "stderr": seen.stderr, "display": display, "error": error}


async def _write(session: Session, files: Files) -> Execution:
    """The last of the calls that wrote the files; the first that failed."""
    seen = Execution()
    for code in program.writes(files):  # type: ignore[arg-type]
        seen = await session.run(code, timeout=FETCH_S)
        if not seen.ok:
            break
    return seen


async def _fetch(session: Session, paths: list[str], sessions: Sessions) -> tuple[dict[str, str], str]:
    """path -> base64 of the files that exist, in parts that fit a result, all of them within a body's size; and which
    were not read because the session took its time.
    """
    part = _part(sessions.sandbox.limits.output_bytes)
    room = _room(sessions)
    deadline = time.monotonic() + FETCH_S
    files: dict[str, str] = {}
    for number, path in enumerate(paths):
        content = bytearray()
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return files, f"fetch_files took more than {FETCH_S:g} s: {len(paths) - number} are left out"
            data = _decoded(await session.run(program.read(path, len(content), part), timeout=left))
            if data is None:
                break
            content += data
            room -= len(data)
            if room < 0:
                raise SandboxError("fetch_files are larger than a body may be; fetch less, or raise --max-body-mb")
            if len(data) < part:
                files[path] = base64.b64encode(content).decode()
                break
    return files, ""


def _part(output_bytes: int) -> int:
    """Bytes whose base64 in quotes fits a result."""
    return max(3, (output_bytes - 16) // 4 * 3)


def _decoded(seen: Execution) -> bytes | None:
    """The result of `program.read`, the repr of base64; None for no file, and for what hostile code makes up instead.

    Nothing is parsed: whatever is between the quotes is base64 or refused, in one pass.
    """
    text = seen.result or ""
    if len(text) < 2 or text[0] != "'" or text[-1] != "'":
        return None
    try:
        return base64.b64decode(text[1:-1], validate=True)
    except (ValueError, binascii.Error):
        return None
