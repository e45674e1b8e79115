"""A fork before each call, so that a time-out or a crash rolls the variables back to the state before it.

Three processes: the keeper (the one that the host knows; it runs no user code, and SIGTERM makes it end the call), the
snapshot (waits, holds the state before the call) and the runner. When the call ends well the snapshot leaves and the
runner carries on; when the runner dies the snapshot kills what it left and takes over.

A snapshot is of the memory of one thread. What a fork cannot copy is therefore not forked away from: a call is made
without a snapshot while the session has

- another thread, or a child process that runs or was not waited for,
- an open descriptor: a file with unwritten text, a socket, a database and its locks,
- so much memory of its own that two copies would not fit its limit.

Such a call is interrupted when its time is over, as in a session without snapshots, and a crash loses the state: the
reply says which. Files, and memory that is shared with other processes, are not rolled back.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import signal
import struct
from collections.abc import Callable

from . import linux, wire

_CALL = struct.Struct("<i?I")  # the process that runs the code, whether a snapshot waits behind it, which call it is
_GRACE_S = 0.3  # between SIGINT and SIGKILL, for a call without a snapshot
_SPARE = 32 << 20  # bytes that a call finds free at the least, else there is no room for a copy


class Rollback:
    """Made before the first request: from then on the caller is a child of the keeper."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        self._send = send
        self._keeper = os.getpid()
        self._call = mmap.mmap(-1, _CALL.size)  # shared with the keeper
        self._tell = -1  # the pipe to the snapshot of this call
        self._number = 0
        self._descriptors: set[str] | None = None
        self._anonymous, data = _memory()
        self._limit = resource.getrlimit(resource.RLIMIT_DATA)[1] - data
        pid = os.fork()
        if pid:
            _CALL.pack_into(self._call, 0, pid, False, 0)
            _keep(self._call)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)

    def protect(self, nonce: bytes) -> bool:
        """Fork where that can be right. True in the runner. In the snapshot: False once the runner has died, never when
        it has ended well.
        """
        self._number += 1
        grown = _memory()[0] - self._anonymous
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if self._holds_more_than_memory() or 2 * grown + _SPARE > self._limit:
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
            _CALL.pack_into(self._call, 0, os.getpid(), False, self._number)
            return True
        done, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(done)
            self._tell = tell
            # Both copies fit the limit, also when the code writes to all that it has inherited.
            resource.setrlimit(resource.RLIMIT_DATA, (hard - max(grown, 0), hard))
            return True
        os.close(tell)
        _CALL.pack_into(self._call, 0, pid, True, self._number)
        status = self._outlive(pid, done)
        _CALL.pack_into(self._call, 0, os.getpid(), False, 0)
        _kill_all_but(1, self._keeper, os.getpid())
        self._send(wire.BACK + nonce + wire.STATUS.pack(status, False))
        return False

    def _outlive(self, pid: int, done: int) -> int:
        """The wait status of the runner, when it has died; this process leaves when the call ends first."""
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
        return status

    def release(self) -> None:
        """The call is over: the snapshot may leave."""
        _CALL.pack_into(self._call, 0, os.getpid(), False, 0)
        if self._tell >= 0:
            os.write(self._tell, b"x")
            os.close(self._tell)
            self._tell = -1

    @property
    def protected(self) -> bool:
        """Whether a snapshot waits behind this call."""
        return self._tell >= 0

    def _holds_more_than_memory(self) -> bool:
        """Another thread, a child, or a descriptor that was not there before the first call."""
        open_now = set(os.listdir("/proc/self/fd"))
        if self._descriptors is None:
            self._descriptors = open_now
        if open_now != self._descriptors or len(os.listdir("/proc/self/task")) > 1:
            return True
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True


def _memory() -> tuple[int, int]:
    """Bytes of this process: resident and not of a file, and what counts as data."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        _, resident, of_files, _, _, data, _ = (int(pages) * mmap.PAGESIZE for pages in file.read().split())
    return resident - of_files, data


def _keep(call: mmap.mmap) -> None:
    """The keeper: until all that it keeps has ended."""

    def end_call(number: int, _: object) -> None:
        pid, protected, which = _CALL.unpack_from(call)
        again = number == signal.SIGALRM
        if again and which != asked[0]:
            return  # it has ended
        asked[0] = which
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if protected or again else signal.SIGINT)
        if not protected and not again:
            signal.setitimer(signal.ITIMER_REAL, _GRACE_S)

    asked = [0]
    signal.signal(signal.SIGTERM, end_call)
    signal.signal(signal.SIGALRM, end_call)
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
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                if file.read().rpartition(")")[2].split()[0] not in "ZX":
                    alive.append(pid)
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
