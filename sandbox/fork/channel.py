"""Waiting for a descriptor, and for the next packet of a session, within a time."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from solostream.sandbox.fork.child import wire


async def readable(fd: int, seconds: float, also: int | None = None) -> bool:
    """Wait until `fd`, or `also`, can be read; False when the time is over."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()

    def settle(value: bool) -> None:
        if not future.done():
            future.set_result(value)

    watched = [fd] if also is None else [fd, also]
    for each in watched:
        loop.add_reader(each, settle, True)
    timer = loop.call_later(max(seconds, 0), settle, False)
    try:
        return await future
    finally:
        for each in watched:
            loop.remove_reader(each)
        timer.cancel()


async def receive(channel: socket.socket, seconds: float, pidfd: int | None = None) -> bytes | None:
    """The next packet; b"" at the end of the stream, or of the process `pidfd`; None when the time is over."""
    with contextlib.suppress(BlockingIOError):
        return _packet(channel)
    with contextlib.suppress(BlockingIOError):
        return _packet(channel) if await readable(channel.fileno(), seconds, pidfd) else None
    return b""


def _packet(channel: socket.socket) -> bytes:
    """Raises BlockingIOError."""
    for _ in range(2):
        try:
            return channel.recv(wire.PACKET)
        except BlockingIOError:
            raise
        except ConnectionResetError:
            continue  # it ended with a request unread; its last words come behind this error
        except OSError:
            break
    return b""
