"""How a container reaches its host: one connection through a socket in a folder that it sees read-only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from solostream.errors import SandboxError, UserError
from solostream.sandbox.docker.daemon import Daemon, log_tail

START_S = 60.0


async def connect(daemon: Daemon, module: str, **host: Any) -> tuple[str, socket.socket]:
    """Start a container that runs `python -m MODULE SOCKET`; its name and the connection that it made.

    The socket is gone when this returns: nothing else can connect, in there or out here. Raises SandboxError with the
    container's last words, UserError for a TMPDIR that is too long for a socket.
    """
    folder = Path(tempfile.mkdtemp(prefix="solostream-"))  # 0700: no other user of this host comes in
    name: str | None = None
    try:
        mount = folder / "c"  # short: a socket's path may have about 100 bytes, of which TMPDIR takes most
        mount.mkdir()
        mount.chmod(0o755)
        with _listen(mount / "s") as listener:
            name = await asyncio.to_thread(
                daemon.create, ["python", "-m", module, "/connection/s"], binds=[f"{mount}:/connection:ro"], **host
            )
            words = await asyncio.to_thread(daemon.start, name)
            return name, await _arrival(listener, words)
    except BaseException:
        if name is not None:
            await asyncio.shield(asyncio.to_thread(daemon.remove, name))
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > 100:
        raise UserError(f"the path {path} is too long for a Unix socket; set TMPDIR to a shorter folder")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o666)  # the container's user is not ours
    listener.listen(1)
    listener.setblocking(False)
    return listener


async def _arrival(listener: socket.socket, stream: socket.socket) -> socket.socket:
    words = asyncio.create_task(log_tail(stream))
    arrived = asyncio.create_task(asyncio.get_running_loop().sock_accept(listener))
    try:
        await asyncio.wait([arrived, words], timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if arrived.done():
            return arrived.result()[0]
        raise SandboxError(f"the container does not start; it said: {words.result() if words.done() else 'nothing'}")
    finally:
        await _cancel(arrived, words)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait(tasks)
