"""One piece of code, run as a notebook runs a cell: its last expression is the result, `await` works at the top level,
`_` is the result before, and `inspect` finds the source of what was defined.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import inspect
import linecache
import os
import sys
import traceback
import types
from collections.abc import Coroutine
from typing import Any, NamedTuple

from . import display, wire

__builtins__ = dict(vars(builtins))  # type: ignore[assignment]

_CLASS_NAME = type.__dict__["__name__"].__get__  # a metaclass cannot lie to it
_OURS = os.path.dirname(__file__)
_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_format = traceback.format_exception
_getfile = inspect.getfile


def prepare() -> None:
    """Before the fork: compile, format and await once, so that no session pays for what is lazy."""
    interpreter = Interpreter({}, 1000)
    for code in (b"1 / 0", b"1", b"import asyncio; await asyncio.sleep(0)"):
        interpreter.run(code, "<warm-up>")
    forget_rehearsal()
    inspect.getfile = _file_of  # type: ignore[assignment]


def forget_rehearsal() -> None:
    """Leave no trace of what ran before the first session."""
    linecache.cache.pop("<warm-up>", None)
    vars(builtins).pop("_", None)


class Reply(NamedTuple):
    """`texts`: result, error name, message, traceback, rich outputs; `trace` and `exit_code`: of a script instead."""

    flags: int = 0
    texts: tuple[bytes, bytes, bytes, bytes, bytes] = (b"", b"", b"", b"", b"")
    exit_code: int = 0
    trace: bytes = b""


class Interpreter:
    """A namespace, and the event loop of its `await`."""

    def __init__(self, namespace: dict[str, Any], room: int) -> None:
        self._namespace, self._room = namespace, room
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, source: bytes, filename: str) -> Reply:
        """Whatever the code raises becomes a reply."""
        display.start()
        try:
            value = self._execute(source, filename)
            text = b""
            if value is not None:
                text = _text(repr(value), self._room + 1)
                display.show_result(value)
                vars(builtins)["_"] = value
            display.flush_figures()
            for stream in (sys.stdout, sys.stderr):  # it may be the code's own by now, and buffered
                with contextlib.suppress(Exception):
                    stream.flush()
        except SystemExit as end:
            code = end.code
            if code in (None, 0):
                return Reply(texts=(b"", b"", b"", b"", display.taken()))
            reply = _describe(end, self._room)
            if isinstance(code, int):
                return reply._replace(exit_code=code & 0xFF, trace=b"")
            return reply._replace(trace=reply.texts[2] + b"\n")
        except BaseException as error:
            return _describe(error, self._room)
        return Reply(0 if value is None else wire.HAS_RESULT, (text, b"", b"", b"", display.taken()))

    def _execute(self, source: bytes, filename: str) -> object:
        """Run the code; the value of its last line where that is an expression."""
        text = source.decode("utf-8", "surrogatepass")
        linecache.cache[filename] = (len(text), None, (text + "\n").splitlines(True), filename)
        try:
            body, tail = _compiled(text, filename)
        except MemoryError:  # how the parser says that brackets nest too deep
            raise SyntaxError("too deeply nested") from None
        if body is not None:
            self._value(body)
        return self._value(tail) if tail is not None else None

    def _value(self, code: types.CodeType) -> object:
        value = eval(code, self._namespace)
        return self._wait(value) if code.co_flags & inspect.CO_COROUTINE else value

    def _wait(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """Run an `await` of the code to its end. Tasks that it leaves behind go on with the next one."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        loop = self._loop
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        finally:
            if not task.done():  # interrupted: it must not go on with the next `await`
                task.cancel()
                with contextlib.suppress(BaseException):
                    loop.run_until_complete(task)
            if not asyncio.all_tasks(loop):
                loop.close()


def _compiled(text: str, filename: str) -> tuple[types.CodeType | None, types.CodeType | None]:
    """The code without its last line, where that is an expression, and that line. Raises SyntaxError, MemoryError."""
    if "\n" not in text and not text[:1].isspace():
        with contextlib.suppress(SyntaxError):  # one line is most often one expression, and a tree of nodes costs more
            return None, compile(text, filename, "eval", _FLAGS, dont_inherit=True)
    # Not `ast.parse`: a frame of the library, and its path, would head every syntax error.
    tree: Any = compile(text, filename, "exec", ast.PyCF_ONLY_AST | _FLAGS, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    last = last if isinstance(last, ast.Expr) and tree.body.pop() else None
    body = compile(tree, filename, "exec", _FLAGS, dont_inherit=True) if tree.body else None
    tail = compile(ast.Expression(last.value), filename, "eval", _FLAGS, dont_inherit=True) if last else None
    return body, tail


def _describe(error: BaseException, room: int) -> Reply:
    """Name, message and traceback, each cut; text made by the code's own methods may fail and is then left out."""
    flags = wire.HAS_ERROR | (wire.OUT_OF_MEMORY if isinstance(error, MemoryError) else 0)
    name = _text(_CLASS_NAME(type(error)), wire.MAX_NAME)
    message = trace = b""
    try:
        message = _text(str(error), room + 1)
        trace = _text("".join(_format(type(error), error, _without_ours(error.__traceback__))), room + 1)
    except BaseException:
        trace = trace or name + b": " + message
    return Reply(flags, (b"", name, message, trace, display.taken()), 1, trace)


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without what lies below the code (these files, asyncio's loop) and without our signal handler."""
    kept: list[types.TracebackType] = []
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith("<cell ") and kept and not kept[0].tb_frame.f_code.co_filename.startswith("<cell "):
            kept.clear()
        if not name.startswith(_OURS):
            kept.append(trace)
        trace = trace.tb_next
    for part in reversed(kept):
        trace = types.TracebackType(trace, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return trace


def _text(text: str, size: int) -> bytes:
    """At most `size` bytes of UTF-8, whatever class of string it is."""
    return str.encode(str.__getitem__(text, slice(size)), "utf-8", "backslashreplace")[:size]


def _file_of(thing: Any) -> str:
    """`inspect.getfile`, which knows no file of a class of `__main__`: the newest cell that defines it."""
    try:
        return _getfile(thing)
    except (OSError, TypeError):
        if not isinstance(thing, type) or thing.__module__ != "__main__":
            raise
        top = thing.__qualname__.partition(".")[0]
        for name, entry in reversed(linecache.cache.items()):
            lines = entry[2] if len(entry) == 4 and entry[1] is None else ()  # of code, not of a file
            if any(line.lstrip().startswith((f"class {top}(", f"class {top}:", f"class {top} ")) for line in lines):
                return name
        raise
