"""What a session prints: two pipes, of which the host holds the reading ends, and reads no more than it keeps.

A pipe outlives its writers, so what was printed before a death arrives; whoever opens /dev/stdout writes behind what is
there, where a file would be wiped. While a call runs the pipes are drained. Beyond the limit a flood is drained at a
pace (`_PACE_S`, `_GULP` bytes a look): it neither blocks the code nor takes the event loop's time.
"""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import os
import socket

from solostream.errors import SandboxError
from solostream.sandbox.fork.child import wire

_PIPE = 65_536  # bytes that a pipe holds
_GULP = 16 * _PIPE
_PACE_S = 0.01
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_SOON_S = 0.002  # most calls are over by then, and nobody had to watch the pipes


class _Stream:
    """One pipe."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd, self.limit = fd, limit
        self.data = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._reader = False

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._reader = None, True
        loop.add_reader(self.fd, self._readable, loop)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reader:
            loop.remove_reader(self.fd)
        self._timer, self._reader = None, False

    def _readable(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self.read(_PIPE):
            self.unwatch(loop)
        elif len(self.data) > self.limit:
            self.unwatch(loop)
            self._flood(loop)

    def _flood(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_PACE_S, self._flood, loop) if self.read(_GULP) else None

    def read(self, most: int) -> bool:
        """What is there, up to `most` bytes; only the limit and one byte more are kept. False when nobody has the
        writing end any more: the code has closed it.
        """
        while most > 0:
            try:
                piece = os.read(self.fd, _PIPE)
            except BlockingIOError:
                return True
            if not piece:
                return False
            most -= len(piece)
            self.data += piece[: max(0, self.limit + 1 - len(self.data))]
        return True


class Streams:
    """stdout and stderr of one session; each keeps `limit` bytes of a call. Raises SandboxError: no descriptors."""

    def __init__(self, limit: int) -> None:
        self._streams: list[_Stream] = []
        self._ends: list[int] = []  # for writing, until they are given away
        self._watching: asyncio.TimerHandle | None = None
        try:
            for _ in range(2):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                self._ends.append(writing)
                os.set_blocking(reading, False)
                os.fchmod(reading, 0o622)  # /dev/stdout is opened by the session's user, who is not this one
                self._streams.append(_Stream(reading, limit))
        except OSError as error:
            self.close()
            raise SandboxError(f"no pipes for a session: {error}; raise `ulimit -n`") from error

    def give(self, channel: socket.socket) -> None:
        """Hand writing ends to the session: at first, and when its code has lost them. Raises OSError."""
        try:
            for stream in self._streams[len(self._ends) :]:
                self._ends.append(os.open(f"/proc/self/fd/{stream.fd}", os.O_WRONLY | os.O_CLOEXEC))
            socket.send_fds(channel, [wire.STREAMS], self._ends)
        finally:
            self._close_ends()

    def start(self) -> None:
        """A call begins: what was printed since the last one is nobody's."""
        for stream in self._streams:
            stream.read(_GULP)
            stream.data.clear()
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(_SOON_S, self._watch, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        for stream in self._streams:
            stream.watch(loop)

    def stop(self) -> tuple[tuple[str, bool], tuple[str, bool]]:
        """The call is over: its stdout and stderr, at most the limit of bytes, and whether that is a part."""
        loop = asyncio.get_running_loop()
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        for stream in self._streams:
            stream.unwatch(loop)
            if len(stream.data) <= stream.limit:
                stream.read(_PIPE)
        out, err = (text(bytes(stream.data), stream.limit) for stream in self._streams)
        return out, err

    def close(self) -> None:
        """Idempotent."""
        for stream in self._streams:
            os.close(stream.fd)
        self._streams = []
        self._close_ends()

    def _close_ends(self) -> None:
        for end in self._ends:
            os.close(end)
        self._ends = []


def sealed(code: bytes) -> int:
    """A memory file that holds the code and can hold nothing else: what does not fit a frame. Raises SandboxError."""
    try:
        fd = os.memfd_create("code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise SandboxError(f"no memory file for a call: {error}; raise `ulimit -n`") from error
    try:
        view = memoryview(code)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(fd)
        raise SandboxError(f"no memory for the code of a call: {error}") from error
    return fd


def text(data: bytes, limit: int) -> tuple[str, bool]:
    """Valid text from any bytes; a character that the limit cuts in two is left out."""
    if not data:
        return "", False
    cut = len(data) > limit
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data[:limit], not cut), cut
