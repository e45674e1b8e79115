"""Between the host's ZeroMQ and a kernel: passes bytes on, and hangs up on a message that is too large as a whole.

ZMQ_MAXMSGSIZE bounds a frame. A message may have any number of frames, and libzmq gathers all of them before it says
anything to anyone: without this, a kernel that sends frame after frame fills the host's memory. The wire is ZMTP 3
(rfc.zeromq.org/spec/23): 64 bytes of greeting, then frames of a flag byte, a size of 1 or 8 bytes, and a body.
"""

from __future__ import annotations

import asyncio
import contextlib

_GREETING = 64
_MORE, _LONG = 1, 2  # flags
_CHUNK = 65_536
_FRAMES = 64  # of one message; an honest one has seven


class MessageTooLarge(ValueError):
    """What arrives is more than any honest kernel sends."""


class Meter:
    """Follows the frames in a stream of bytes. `cap`: bytes of one message, all frames together."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._body = _GREETING  # bytes until the next frame
        self._head = bytearray()
        self._size = self._frames = 0

    def feed(self, data: bytes) -> None:
        """Raises TooLarge."""
        at = 0
        while at < len(data):
            if self._body:
                step = min(self._body, len(data) - at)
                self._body -= step
                at += step
                continue
            wanted = 1 if not self._head else 9 if self._head[0] & _LONG else 2
            piece = data[at : at + wanted - len(self._head)] if self._head else data[at : at + 1]
            self._head += piece
            at += len(piece)
            if len(self._head) == (9 if self._head[0] & _LONG else 2):
                self._frame()

    def _frame(self) -> None:
        self._body = int.from_bytes(self._head[1:], "big")
        self._size += self._body
        self._frames += 1
        if self._size > self._cap or self._frames > _FRAMES:
            raise MessageTooLarge
        if not self._head[0] & _MORE:
            self._size = self._frames = 0
        self._head.clear()


async def relay(here: str, there: str, cap: int) -> asyncio.Server:
    """Listen on the path `here`; the one connection that comes is passed on to the path `there`."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        try:
            kernel_reader, kernel_writer = await asyncio.open_unix_connection(there)
        except OSError:
            writer.close()
            return
        directions = (_pass(reader, kernel_writer, None), _pass(kernel_reader, writer, Meter(cap)))
        tasks.update(map(asyncio.create_task, directions))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, kernel_writer):
            end.close()
        for task in tasks:
            task.cancel()

    server = await asyncio.start_unix_server(connected, here)
    return server


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meter: Meter | None) -> None:
    with contextlib.suppress(OSError, MessageTooLarge):
        while data := await reader.read(_CHUNK):
            if meter is not None:
                meter.feed(data)
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)
