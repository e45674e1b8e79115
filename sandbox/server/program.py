"""What runs inside the session for the SandboxFusion format, as text that needs only the standard library.

The code is a script there: it runs as `__main__`, with its standard input, and the result is its exit code. Files are
written and read by code in the sandbox, never by the server: a path can lead nowhere that the code itself could not go.
"""

from __future__ import annotations

import json
from typing import Any

_PREPARE = r"""
def _write(files):
    import base64, os
    for path, content in files.items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(content))


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
    import atexit, linecache, os, sys, threading, traceback, types
    _write(job["files"])
    with open(".stdin", "w+b") as file:  # by hand: importing `tempfile` would cost as much as all the rest
        os.unlink(".stdin")
        file.write(job["stdin"].encode("utf-8", "surrogatepass"))
        file.seek(0)
        os.dup2(file.fileno(), 0)
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
    sys.argv = ["main.py"]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = "main.py"
    linecache.cache["main.py"] = (len(job["code"]), None, job["code"].splitlines(True), "main.py")
    ours = set(threading.enumerate())
    atexit._clear()
    status = 0
    try:
        if job["memory_mb"] > 0:
            _limit(job["memory_mb"])
        exec(compile(job["code"], "main.py", "exec"), main.__dict__)
    except SystemExit as stop:
        status = stop.code
        if status is not None and not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        raise  # the sandbox's clock, or the code's own: the caller can tell
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        traceback.print_exception(error)
        status = 1
    for thread in threading.enumerate():
        if thread not in ours and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    return (status or 0) & 255
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


def script(code: str, stdin: str, files: dict[str, str], memory_mb: int) -> str:
    """A program whose result is the exit code of `code`. `files`: path -> base64.

    `memory_mb` is counted above what the interpreter has mapped; 0 or less sets no limit but the sandbox's.
    """
    job = {"code": code, "stdin": stdin, "files": files, "memory_mb": memory_mb}
    return f"{_PREPARE}{_SCRIPT}\n_run({_literal(job)})"


def notebook(files: dict[str, str], memory_mb: int) -> str:
    """A program that prepares a session for cells."""
    limit = f"_limit({memory_mb})\n" if memory_mb > 0 else ""
    return f"{_PREPARE}\n_write({_literal(files)})\n{limit}del _write, _limit"


def read(path: str, start: int, size: int) -> str:
    """A program whose result is base64 of a part of a file in the session's folder; None when it is not there."""
    return f"{_READ}\n_read({path!r}, {start}, {size})"


def _literal(value: Any) -> str:
    """JSON inside a Python literal: ASCII only, so that surrogates and NUL travel as escapes."""
    return f"__import__('json').loads({json.dumps(value)!r})"
