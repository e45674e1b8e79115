"""Sessions that are live copies of one another: `session.fork()`.

The interpreter forks itself, so a copy costs what a fork costs and has every variable. It stays in the namespaces of
its original: a family shares files, process list, and the limits on memory, processes and disk, and nothing else;
the original may end before its copies. What daemons a copy has started end with the last of the family.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from solostream.errors import SandboxError
from solostream.sandbox.fork.channel import readable, receive
from solostream.sandbox.fork.child import wire

if TYPE_CHECKING:
    from solostream.sandbox.fork.server import ForkServer

_FORK_S = 20.0  # a session that has not copied itself by then is stuck in a thread of its own
_END_S = 30.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid as seen from here, uid, gid


class Family:
    """Counts who lives. The fork server keeps the namespaces, or the process group, until it is told to let go."""

    def __init__(self, server: ForkServer, number: int, channel: socket.socket) -> None:
        """`channel`: the original's; its end is the end of all of them."""
        self.living = 1
        self._server, self._number = server, number
        self._channel = channel.dup()
        server.tell(wire.HOLD, number)

    async def leave(self) -> None:
        """One ends. With the last everything does; returns when it has. Raises SandboxError."""
        self.living -= 1
        if self.living:
            return
        self._server.tell(wire.LET_GO, self._number)
        deadline = time.monotonic() + _END_S
        with self._channel:
            while await receive(self._channel, deadline - time.monotonic()):
                pass
        if time.monotonic() > deadline:
            raise SandboxError(f"a killed session is still there after {_END_S:.0f} s")


async def branch(channel: socket.socket, pidfd: int) -> tuple[socket.socket, int]:
    """Have the session behind `channel` copy itself: the copy's channel and pidfd. Raises SandboxError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # the kernel says who writes
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(channel, [wire.FORK], [theirs.fileno()])
        if not await readable(ours.fileno(), _FORK_S, pidfd):
            raise SandboxError(f"the session did not copy itself within {_FORK_S:.0f} s: a thread of it is busy")
        word: bytes = b""
        credentials: list[tuple[int, int, bytes]] = []
        with contextlib.suppress(OSError):
            word, credentials, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        if word != wire.READY or not credentials:
            raise SandboxError("the session could not copy itself; it has as many processes as it may have, or ended")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        pid = _CREDENTIALS.unpack(credentials[0][2])[0]
        try:
            copy = os.pidfd_open(pid)
        except (OSError, ValueError) as error:
            raise SandboxError(f"the copy of a session is gone: {error}") from None
        # The number may be another process's by now, and this one will be killed some day: it must be the session's.
        if _parent(pid) != _pid(pidfd):
            os.close(copy)
            raise SandboxError("the copy of a session is gone")
        return ours, copy
    except BaseException:
        ours.close()
        raise


def end_group(pidfd: int) -> None:
    """Kill the process group that the process `pidfd` leads, if it does and still runs or is unburied."""
    pid = _pid(pidfd)
    with contextlib.suppress(OSError):
        if pid > 0 and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)


def _pid(pidfd: int) -> int:
    """-1 when it has ended and is buried."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("Pid:"))[4:])


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 0
