"""What runs inside the session for the SandboxFusion format, as text that needs only the standard library.

The code is a script there: it runs as `__main__`, with its standard input, and the result is its exit code. Files are
written and read by code in the sandbox, never by the server: a path can lead nowhere that the code itself could not go.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

STDIN = ".solostream-stdin"  # a name that no client gives a file
_NAMES = ("main.py", "__main__.py", "script.py", ".script.py")
_BATCH = 4 << 20  # characters of base64 in one call (a multiple of 4: each part decodes by itself)

_WRITE = r"""
def _write(parts):
    import base64, os
    for path, mode, content in parts:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, mode) as file:
            file.write(base64.b64decode(content))
"""

_LIMIT = r"""
def _limit(mb):
    # Above what the interpreter has taken already, which the caller cannot know.
    import resource
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[5]) * resource.getpagesize() + mb * 1048576
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or size < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
"""

_SCRIPT = r"""
def _run(job):
    import atexit, io, linecache, os, sys, threading, traceback, types
    with open(job["stdin"], "ab+") as file:
        os.unlink(job["stdin"])
        file.seek(0)
        os.dup2(file.fileno(), 0)
    sys.stdin = io.open(0, encoding="utf-8", errors="replace", closefd=False)
    name, code = job["name"], job["code"]
    with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(code)
    sys.argv = [name]
    sys.path.insert(0, os.getcwd())
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = os.path.abspath(name)
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    ours, home = set(threading.enumerate()), os.getpid()
    atexit._clear()
    status = 0
    try:
        if job["memory_mb"] > 0:
            _limit(job["memory_mb"])
        exec(compile(code, name, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as stop:
        status = stop.code
        if status is not None and not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        if os.getpid() == home:
            raise  # the sandbox's clock, or the code's own: the caller can tell
        status = 130
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        traceback.print_exception(error)
        status = 1
    for thread in threading.enumerate():
        if thread not in ours and not thread.daemon:
            thread.join()
    if os.getpid() == home:
        atexit._run_exitfuncs()
    status = (status or 0) & 255
    if os.getpid() != home:  # a child that the code has forked
        sys.stdout.flush()
        os._exit(status)
    return status
"""

_READ = r"""
def _read(path, start, size):
    import base64, os
    here = os.path.realpath(".")
    if os.path.commonpath([here, os.path.realpath(path)]) != here or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        file.seek(start)
        return base64.b64encode(file.read(size)).decode()
"""


def writes(files: dict[str, str]) -> Iterator[str]:
    """Programs that write `files` (path -> base64), each within the size of one call."""
    batch: list[tuple[str, str, str]] = []
    room = _BATCH
    for path, content in files.items():
        content = content or ""
        for start in range(0, len(content) or 1, _BATCH):
            part = content[start : start + _BATCH]
            if batch and len(part) > room:
                yield _writing(batch)
                batch, room = [], _BATCH
            batch.append((path, "ab" if start else "wb", part))
            room -= len(part)
    if batch:
        yield _writing(batch)


def _writing(batch: list[tuple[str, str, str]]) -> str:
    return f"{_WRITE}\n_write({_literal(batch)})\ndel _write"


def script(code: str, taken: Collection[str], memory_mb: int) -> str:
    """A program whose result is the exit code of `code`, with what STDIN holds as its standard input.

    The code lies in the session's folder as main.py, unless `taken` holds a file of that name. `memory_mb` is counted
    above what the interpreter has taken; 0 or less sets no limit but the sandbox's.
    """
    name = next(name for name in _NAMES if name not in taken)
    job = {"code": code, "name": name, "stdin": STDIN, "memory_mb": memory_mb}
    return f"{_LIMIT}{_SCRIPT}\n_run({_literal(job)})"


def notebook(memory_mb: int) -> str:
    """A program that prepares a session for cells."""
    return f"{_LIMIT}\n_limit({memory_mb})\ndel _limit" if memory_mb > 0 else ""


def read(path: str, start: int, size: int) -> str:
    """A program whose result is base64 of a part of a file in the session's folder; None when it is not there."""
    return f"{_READ}\n_read({path!r}, {start}, {size})"


def _literal(value: Any) -> str:
    """JSON inside a Python literal: ASCII only, so that surrogates and NUL travel as escapes."""
    return f"__import__('json').loads({json.dumps(value)!r})"
