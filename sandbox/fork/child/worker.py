"""Inside a session: receive code, run it as a notebook would, reply.

It shares its process with the code that it runs, so nothing it says is trusted (see `wire`). What it does do is
survive vandalism: its functions see a private copy of the builtins, call bound C functions that were looked up before
any user code ran, and restore streams, signal handlers and trace functions around every call. The recursion limit that
the code sets holds for the code; between calls ours does.
"""

from __future__ import annotations

import _signal  # the C functions: `signal` converts every value to an enum and back
import _thread
import array
import builtins
import contextlib
import io
import itertools
import os
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

from . import cell, display, randomness, wire
from .snapshot import Rollback

# Functions defined below look names up here, whatever happens to `builtins` later.
__builtins__ = dict(vars(builtins))  # type: ignore[assignment]

CHANNEL = 3  # a session's only descriptor besides the standard ones
_fork, _count_threads = os.fork, _thread._count
_SIGINT, _set_handler = _signal.SIGINT, _signal.signal
_REHEARSALS = 10  # Python specializes what has run eight times
_found: list[Any] = []  # generators of random numbers
_RECURSION, _LEAST_RECURSION = sys.getrecursionlimit(), 100


def prepare() -> None:
    """Before the fork: what all sessions need alike, and what would be lazy in each of them."""
    sys.set_int_max_str_digits(0)  # else 2**20000 can be computed and not printed; graders lift it too
    sys.dont_write_bytecode = True  # a module that is written twice in a second is read twice
    sys.path.insert(0, "")  # as in a notebook: what lies in the working folder can be imported
    display.install()
    cell.prepare()
    _found[:] = randomness.find()


def reserve_channel() -> None:
    """In the fork server: a socket that nobody has the other end of, in whose place each session puts its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        fd = ours.detach()
        if fd != CHANNEL:
            os.dup2(fd, CHANNEL, inheritable=False)
            os.close(fd)


class _Room:
    """How many bytes a stream may still print in this call: of the call, not of the object that prints."""

    left = 0


class _Capped(io.RawIOBase):
    """Writes through to a descriptor as long as there is room and swallows the rest: a loop that prints for ever fills
    nothing. There is room for one byte above the limit, so that the host can tell a full stream from a cut one.
    """

    def __init__(
        self, fd: int, room: _Room, write: Callable[[int, Any], int] = os.write, view: type[memoryview] = memoryview
    ) -> None:
        self._fd, self._room, self._write, self._view = fd, room, write, view

    def write(self, data: Any) -> int:
        data = self._view(data).cast("B")
        if self._room.left > 0 and len(data):
            self._room.left -= self._write(self._fd, data[: self._room.left])
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


class _Session:
    """What lasts from call to call."""

    def __init__(self, room: int) -> None:
        self.size = room
        self.rooms = {1: _Room(), 2: _Room()}
        self.interrupts = _Interrupts()
        self.streams: tuple[io.TextIOWrapper, ...] | None = self.new_streams()  # of the first call
        self.outlived: list[tuple[object, ...]] = []
        self.recursion = _RECURSION
        self.interpreter = cell.Interpreter(_fresh_main(), room)

    def new_streams(self) -> tuple[io.TextIOWrapper, ...]:
        """For the next call. stdin is at its end from the start: input() raises EOFError."""
        return io.TextIOWrapper(io.BytesIO(), "utf-8"), *(_stream(fd, room) for fd, room in self.rooms.items())


class Worker:
    """Made before the fork, with all that sessions have alike."""

    def __init__(self, output_bytes: int) -> None:
        self._space = socket.CMSG_SPACE(2 * 4)
        for _ in range(_REHEARSALS):
            _rehearse(output_bytes, self._space)
        self._channel = socket.socket(fileno=CHANNEL)
        self._generators = randomness.Generators(_found)
        self._session = _Session(output_bytes)

    def serve(self, snapshot: bool) -> NoReturn:
        """In a session: answer requests until the host closes the socket."""
        _set_handler(_SIGINT, self._session.interrupts)
        self._generators.reseed()
        _serve(self._channel, self._session, self._space, snapshot)


def _rehearse(output_bytes: int, space: int) -> None:
    """A call in the fork server. Python rewrites what it runs for the first times, and keeps what it has looked up:
    done here, that lies in pages that sessions share.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    socket.send_fds(ours, [wire.STREAMS], [null, null])
    os.close(null)
    session = _Session(output_bytes)
    _hold(_take_streams(theirs.recvmsg, space))
    _set_handler(_SIGINT, session.interrupts)
    for code in (b"print(1)", b"1"):
        _send(theirs.send, wire.REPLY, _run(code, "<warm-up>", session))
    for end in (ours, theirs):
        end.close()
    cell.forget_rehearsal()


def _serve(channel: socket.socket, session: _Session, space: int, snapshot: bool) -> NoReturn:
    receive, send, getpid = channel.recvmsg, channel.send, os.getpid
    rollback = Rollback(send) if snapshot else None
    send(wire.READY)
    cells = itertools.count(1)
    pipes = _take_streams(receive, space)
    while True:
        packet, ancillary, _, _ = receive(wire.PACKET, space, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            os._exit(0)
        if packet == wire.FORK:
            if _branch(channel, ancillary):
                pipes = _take_streams(receive, space)
            continue
        nonce, length = wire.REQUEST.unpack_from(packet)
        source = _long(ancillary, length) if ancillary else packet[wire.REQUEST.size :]
        if rollback and not rollback.protect(nonce):
            continue
        if not _hold(pipes):
            send(wire.STREAMS + nonce)
            _take_streams(receive, space)
        home = getpid()
        reply = _run(source, f"<cell {next(cells)}>", session)
        if getpid() != home:
            _leave(reply)
        if rollback and rollback.protected:
            reply = reply._replace(flags=reply.flags | wire.PROTECTED)
        _send(send, wire.REPLY + nonce, reply)
        if rollback:
            rollback.release()


def _take_streams(receive: Callable[..., Any], space: int) -> list[tuple[int, int]]:
    """Make what the host sends our stdout and stderr; which pipes they are."""
    _, ancillary, _, _ = receive(1, space, socket.MSG_CMSG_CLOEXEC)
    if not ancillary:
        os._exit(0)
    for end, standard in zip(array.array("i", ancillary[0][2]), (1, 2), strict=True):
        os.dup2(end, standard)
        os.close(end)
    return [_identity(standard) for standard in (1, 2)]


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _hold(pipes: list[tuple[int, int]]) -> bool:
    """Whether stdout and stderr are still what they were: the code may have closed or replaced them."""
    try:
        return [_identity(standard) for standard in (1, 2)] == pipes
    except OSError:
        return False


def _branch(channel: socket.socket, ancillary: list[Any]) -> bool:
    """The host asks for a copy of this session. True in the copy, which answers on a channel of its own."""
    if not ancillary:
        return False
    (end,) = array.array("i", ancillary[0][2])
    # A fork gives `random` new numbers; a copy goes on with those that the original would draw.
    generator = getattr(sys.modules.get("random"), "_inst", None)
    try:
        state = generator.getstate() if generator else None
        if _fork():
            return False
        if generator:
            generator.setstate(state)
        os.dup2(end, channel.fileno(), inheritable=False)
    except Exception:  # as many processes as there may be: the host sees the end close
        return False
    finally:
        os.close(end)
    os.setsid()  # where that is refused it seems to succeed
    channel.send(wire.READY)
    return True


def _long(ancillary: list[Any], length: int) -> bytes:
    """The code that did not fit its request."""
    (memory,) = array.array("i", ancillary[0][2])
    try:
        return os.pread(memory, length, 0)
    finally:
        os.close(memory)


def _send(send: Callable[[Any], int], head: bytes, reply: cell.Reply) -> None:
    packet = b"".join((head, wire.HEAD.pack(reply.flags, *map(len, reply.texts)), *reply.texts))
    for start in range(0, len(packet), wire.PACKET):
        send(packet[start : start + wire.PACKET])


def _leave(reply: cell.Reply) -> NoReturn:
    """The code has forked and this is the child, at the end of the code: it leaves as the child of a script does, and
    never answers the call. Handlers of `atexit` are the parent's: multiprocessing's would end the parent's pools.
    """
    try:
        if reply.trace:
            os.write(2, reply.trace)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:
        pass
    finally:
        os._exit(reply.exit_code)


def _fresh_main() -> dict[str, Any]:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    namespace = vars(module)
    namespace["__builtins__"] = builtins
    return namespace


def _run(source: bytes, filename: str, session: _Session) -> cell.Reply:
    """One call, from fresh streams to a finished reply. Never raises."""
    reply = cell.Reply(wire.HAS_ERROR, (b"", b"KeyboardInterrupt", b"", b"", b""), 1)
    interrupts, rooms = session.interrupts, session.rooms
    try:
        _keep_streams(session.outlived)
        for room in rooms.values():
            room.left = session.size + 1
        streams, session.streams = session.streams or session.new_streams(), None
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.__stdout__, sys.__stderr__ = streams[1:]  # type: ignore[misc]
        _set_handler(_SIGINT, interrupts)
        sys.path_importer_cache.pop(os.getcwd(), None)  # a module may have been written since it was listed
    except Exception:
        pass  # a folder that is gone
    try:
        sys.setrecursionlimit(session.recursion)
        interrupts.running = True
        reply = session.interpreter.run(source, filename)
    except BaseException:  # an interrupt in the middle of our own lines
        pass
    finally:
        interrupts.running = False
        sys.settrace(None)
        sys.setprofile(None)
        with contextlib.suppress(Exception):
            session.recursion = max(sys.getrecursionlimit(), _LEAST_RECURSION)
            sys.setrecursionlimit(_RECURSION)
        for room in rooms.values():
            room.left = 0  # what threads print between the calls is nobody's
    return reply


def _keep_streams(outlived: list[tuple[object, ...]]) -> None:
    """Before new streams come: a thread that prints holds the old one only by its name in `sys`, and most versions of
    Python crash when it is freed in the middle of that.
    """
    if _count_threads():
        outlived.append(tuple(getattr(sys, name, None) for name in ("stdin", "stdout", "stderr")))
    else:
        outlived.clear()


def _stream(fd: int, room: _Room) -> io.TextIOWrapper:
    raw: Any = _Capped(fd, room)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline="\n", write_through=True)
