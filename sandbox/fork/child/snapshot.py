"""A fork before each call, so that a time-out or a crash rolls the variables back to the state before it.

Three processes: the keeper (the one that the host knows; it runs no user code, and SIGTERM makes it kill the runner),
the snapshot (waits, holds the state before the call) and the runner. When the call ends well the snapshot leaves and
the runner carries on; when the runner dies the snapshot kills what it left and takes over. Files are not rolled back.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import struct
from collections.abc import Callable

from . import linux, wire

_PID = struct.Struct("<i")


class Rollback:
    """Made before the first request: from then on the caller is a child of the keeper."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        self._send = send
        self._keeper = os.getpid()
        self._active = mmap.mmap(-1, _PID.size)  # shared with the keeper
        pid = os.fork()
        if pid:
            _PID.pack_into(self._active, 0, pid)
            _keep(self._active)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)

    def protect(self, nonce: bytes) -> bool:
        """Fork. True in the runner. In the snapshot: False once the runner has died, never when it has ended well."""
        done, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(done)
            self._tell = tell
            return True
        os.close(tell)
        _PID.pack_into(self._active, 0, pid)
        pidfd = os.pidfd_open(pid)
        # The runner's children hold the pipe as well: only its byte counts, not its end.
        watched = [done, pidfd]
        while True:
            readable, _, _ = select.select(watched, [], [])
            if done in readable and os.read(done, 1):
                os._exit(0)
            if pidfd in readable:
                break
            watched = [pidfd]
        _, status = os.waitpid(pid, 0)
        os.close(done)
        os.close(pidfd)
        _PID.pack_into(self._active, 0, os.getpid())
        _kill_all_but(1, self._keeper, os.getpid())
        self._send(wire.BACK + nonce + wire.STATUS.pack(status, False))
        return False

    def release(self) -> None:
        """The call is over: the snapshot may leave."""
        os.write(self._tell, b"x")
        os.close(self._tell)


def _keep(active: mmap.mmap) -> None:
    def end_call(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(_PID.unpack_from(active)[0], signal.SIGKILL)

    signal.signal(signal.SIGTERM, end_call)
    status = 0
    while True:
        try:
            _, status = os.waitpid(-1, 0)
        except ChildProcessError:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _kill_all_but(*spared: int) -> None:
    """Kill everything in this pid namespace but these, until nothing new appears."""
    while True:
        alive = []
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in spared]:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] not in "ZX":
                    alive.append(pid)
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
