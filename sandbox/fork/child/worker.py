"""Inside a session: receive code, run it as a REPL would, reply.

It shares its process with the code that it runs, so nothing it says is trusted (see `wire`). What it does do is
survive vandalism: its functions see a private copy of the builtins, call bound C functions that were looked up before
any user code ran, and restore streams, signal handlers, trace functions and the recursion limit around every call.
"""

from __future__ import annotations

import _signal  # the C functions: `signal` converts every value to an enum and back
import array
import ast
import builtins
import contextlib
import io
import itertools
import linecache
import os
import socket
import sys
import traceback
import types
from typing import Any, NamedTuple

from . import wire
from .snapshot import Rollback

# Functions defined below look names up here, whatever happens to `builtins` later.
__builtins__ = dict(vars(builtins))  # type: ignore[assignment]

_CLASS_NAME = type.__dict__["__name__"].__get__  # a metaclass cannot lie to it
_SIGINT, _set_handler = _signal.SIGINT, _signal.signal
_RECURSION = sys.getrecursionlimit()
_format = traceback.format_exception


def prepare() -> None:
    """Before the fork: compile and format once, so that no session pays for what is lazy."""
    try:
        exec(compile(ast.parse("1 / 0"), "<warm-up>", "exec"), {})
    except ZeroDivisionError as error:
        _describe(error, 1000)


class _Capped(io.RawIOBase):
    """Writes through to a descriptor up to a number of bytes and swallows the rest: a loop that prints for ever fills
    nothing. One byte above the limit is kept, so that the host can tell a full stream from a cut one."""

    def __init__(self, fd: int, room: int, write=os.write, view=memoryview) -> None:
        self._fd, self._room, self._write, self._view = fd, room + 1, write, view

    def write(self, data) -> int:
        data = self._view(data).cast("B")
        if self._room > 0 and len(data):
            self._room -= self._write(self._fd, data[: self._room])
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd


class _Interrupts:
    """SIGINT raises KeyboardInterrupt while user code runs, and is forgotten otherwise."""

    running = False

    def __call__(self, number: int, frame: object) -> None:
        if self.running:
            raise KeyboardInterrupt


class _Reply(NamedTuple):
    flags: int
    texts: tuple[bytes, bytes, bytes, bytes] = (b"", b"", b"", b"")  # result, error name, message, traceback


def serve(fd: int, output_bytes: int, snapshot: bool) -> None:
    """Answer requests until the host closes the socket. `fd`: the session's end of the pair."""
    channel = socket.socket(fileno=fd)
    receive, send = channel.recvmsg, channel.send
    interrupts = _Interrupts()
    _set_handler(_SIGINT, interrupts)
    rollback = Rollback(send) if snapshot else None
    namespace = _fresh_main()
    _reseed()
    send(wire.READY)
    space, cells = socket.CMSG_SPACE(3 * 4), itertools.count(1)
    while True:
        packet, ancillary, _, _ = receive(wire.PACKET, space, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            os._exit(0)
        nonce, length = wire.REQUEST.unpack(packet)
        memory, out, err = array.array("i", ancillary[0][2])
        if rollback and not rollback.protect(nonce):
            for lent in (memory, out, err):
                os.close(lent)
            continue
        for lent, standard in ((out, 1), (err, 2)):
            os.dup2(lent, standard)
            os.close(lent)
        source = os.pread(memory, length, 0)
        reply = _run(source, f"<cell {next(cells)}>", namespace, output_bytes, interrupts)
        head = wire.HEAD.pack(reply.flags, *map(len, reply.texts))
        os.pwritev(memory, [head, *reply.texts], 0)
        os.close(memory)
        send(wire.REPLY + nonce)
        if rollback:
            rollback.release()


def _reseed() -> None:
    """Forks share the state of every generator: without this, all sessions would draw the same numbers."""
    for name in ("random", "numpy.random"):
        if name in sys.modules:
            sys.modules[name].seed()


def _fresh_main() -> dict[str, Any]:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    namespace = vars(module)
    namespace["__builtins__"] = builtins
    return namespace


def _run(source: bytes, filename: str, namespace: dict, room: int, interrupts: _Interrupts) -> _Reply:
    """One call, from fresh streams to a finished reply. Never raises."""
    reply = _Reply(wire.HAS_ERROR, (b"", b"KeyboardInterrupt", b"", b""))
    try:
        sys.stdin = io.TextIOWrapper(io.BytesIO(), "utf-8")  # at its end from the start: input() raises EOFError
        for fd, name in ((1, "stdout"), (2, "stderr")):
            stream = _stream(fd, room)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        _set_handler(_SIGINT, interrupts)
        interrupts.running = True
        reply = _outcome(source, filename, namespace, room)
    except BaseException:  # an interrupt in the middle of our own lines
        pass
    finally:
        interrupts.running = False
        sys.settrace(None)
        sys.setprofile(None)
        sys.setrecursionlimit(_RECURSION)
    return reply


def _stream(fd: int, room: int) -> io.TextIOWrapper:
    raw: Any = _Capped(fd, room)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline="\n", write_through=True)


def _outcome(source: bytes, filename: str, namespace: dict, room: int) -> _Reply:
    try:
        value = _execute(source, filename, namespace)
        text = None if value is None else _text(repr(value), room + 1)
        for stream in (sys.stdout, sys.stderr):  # it may be the code's own by now, and buffered
            with contextlib.suppress(Exception):
                stream.flush()
    except SystemExit as end:
        return _Reply(0) if end.code in (None, 0) else _describe(end, room)
    except BaseException as error:
        return _describe(error, room)
    if text is None:
        return _Reply(0)
    return _Reply(wire.HAS_RESULT, (text, b"", b"", b""))


def _execute(source: bytes, filename: str, namespace: dict) -> object:
    """Run the code; the value of its last line where that is an expression."""
    text = source.decode("utf-8", "surrogatepass")
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    try:
        # Not `ast.parse`: a frame of the library, and its path, would head every syntax error.
        tree: Any = compile(text, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        last = tree.body[-1] if tree.body else None
        last = last if isinstance(last, ast.Expr) and tree.body.pop() else None
        body = compile(tree, filename, "exec", dont_inherit=True)
        tail = compile(ast.Expression(last.value), filename, "eval", dont_inherit=True) if last else None
    except MemoryError:  # how the parser says that brackets nest too deep
        raise SyntaxError("too deeply nested") from None
    exec(body, namespace)
    return eval(tail, namespace) if tail is not None else None


def _describe(error: BaseException, room: int) -> _Reply:
    """Name, message and traceback, each cut; text made by the code's own methods may fail and is then left out."""
    flags = wire.HAS_ERROR | (wire.OUT_OF_MEMORY if isinstance(error, MemoryError) else 0)
    name = _text(_CLASS_NAME(type(error)), wire.MAX_NAME)
    message = trace = b""
    try:
        message = _text(str(error), room)
        trace = _text("".join(_format(type(error), error, _without_ours(error.__traceback__))), room)
    except BaseException:
        trace = trace or name + b": " + message
    return _Reply(flags, (b"", name, message, trace))


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without this file's frames: those below the code, and the signal handler above it."""
    kept = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            kept.append(trace)
        trace = trace.tb_next
    for part in reversed(kept):
        trace = types.TracebackType(trace, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return trace


def _text(text: str, size: int) -> bytes:
    """At most `size` characters, whatever class of string it is, as UTF-8."""
    return str.encode(str.__getitem__(text, slice(size)), "utf-8", "backslashreplace")
