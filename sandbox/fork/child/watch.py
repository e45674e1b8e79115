"""The memory of each session's processes together, where no cgroup counts it: a process beside the fork server.

Code cannot leave its session's account. With namespaces, a session is all that is below process 1 of its pid namespace
and below its leader: the kernel gives every orphan to one of them, whatever subreaper gave up its duty. Without, it is
a process group, which seccomp keeps everybody in. What cannot be read, or takes too long to be counted, counts as over
the limit. A session may go over by a sixteenth, and for about a tenth of a second by more.

In a container all sessions share one limit, at which the kernel would end whichever process is the largest. Before that
happens the session that holds the most is ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import time
from typing import NamedTuple, NoReturn

from . import linux, memory

SESSION = struct.Struct("<ii")  # fork server -> watch: the leader, process 1 of its namespace (0: none); with a pidfd
OVER = struct.Struct("<i")  # watch -> fork server: this leader's session is being ended

_EVERY_S = 0.1
_COUNT_S = 0.2  # of processor time to count one session's pages: more mappings than that no calculation makes
_SETTLE_S = 1.0  # for the memory of an ended session to come back
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
_CLOSE_RANGE = 436


class Process(NamedTuple):
    """What everybody may read about a process."""

    parent: int
    group: int
    resident_kb: int


class Session(NamedTuple):
    """The processes of one session, as the watch knows them: pids, and a pidfd that ends with it."""

    leader: int
    init: int
    pidfd: int  # of process 1, or of the leader where there is none


def start(memory_mb: int, room: memory.Room | None) -> socket.socket:
    """Fork the watch; the fork server's end of its channel. It ends with the fork server."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if linux.fork() == 0:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            kept = sorted({theirs.fileno(), *(room.descriptors if room else ())})
            for low, high in zip([2, *kept], [*kept, 0x7FFFFFFF + 1], strict=True):
                if low + 1 < high:
                    linux.syscall(_CLOSE_RANGE, low + 1, high - 1, 0)
            _Watch(theirs, memory_mb * 1024, room).run()
        finally:
            os._exit(1)
    theirs.close()
    return ours


class _Watch:
    def __init__(self, channel: socket.socket, limit_kb: int, room: memory.Room | None) -> None:
        # A little more than what one process may have: its MemoryError comes first, and then it goes on.
        self._channel, self._limit_kb, self._room = channel, limit_kb + limit_kb // 16, room
        self._sessions: dict[int, Session] = {}  # by leader
        self._settled = 0.0  # before that nobody is ended for the container's sake

    def run(self) -> NoReturn:
        took = 0.0
        while True:
            # However many sessions there are, looking takes at most half of one core.
            self._learn(time.monotonic() + max(_EVERY_S, took))
            start = time.monotonic()
            self._look()
            took = time.monotonic() - start

    def _learn(self, until: float) -> None:
        """Hear of new sessions until the time is over."""
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._channel], [], [], left)[0]:
                return
            packet, fds, _, _ = socket.recv_fds(self._channel, SESSION.size, 1)
            if not packet:
                os._exit(0)
            if fds:  # else we are out of descriptors, or the session has ended already
                leader, init = SESSION.unpack(packet)
                self._sessions[leader] = Session(leader, init, fds[0])

    def _look(self) -> None:
        table = processes()
        below = _children(table)
        members = {leader: _members(its, table, below) for leader, its in self._sessions.items()}
        for leader in [leader for leader, pids in members.items() if not pids]:
            os.close(self._sessions.pop(leader).pidfd)
        held = {leader: pids for leader, pids in members.items() if pids}
        for leader, pids in held.items():
            resident = sum(table[pid].resident_kb for pid in pids)
            # Resident pages are cheap to know, but count what a fork shares with its parent.
            if resident > self._limit_kb and private_kb(pids) > self._limit_kb:
                self._end(leader)
        if self._room and time.monotonic() > self._settled and self._room.scarce():
            self._end(max(held, key=lambda leader: _share_kb(held[leader], table), default=0))
            self._settled = time.monotonic() + _SETTLE_S

    def _end(self, leader: int) -> None:
        session = self._sessions.get(leader)
        if session is None:
            return
        self._channel.send(OVER.pack(leader))  # first: the fork server then knows why
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(session.pidfd, signal.SIGKILL)
        if not session.init:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(leader, signal.SIGKILL)


def processes() -> dict[int, Process]:
    """Every process that /proc shows."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
                found[int(name)] = Process(int(fields[1]), int(fields[2]), int(fields[21]) * _PAGE_KB)
    return found


def _children(table: dict[int, Process]) -> dict[int, list[int]]:
    below: dict[int, list[int]] = {}
    for pid, process in table.items():
        below.setdefault(process.parent, []).append(pid)
    return below


def _members(session: Session, table: dict[int, Process], below: dict[int, list[int]]) -> list[int]:
    if not session.init:
        # The leader may not have made its group yet.
        return [pid for pid, process in table.items() if session.leader in (pid, process.group)]
    found = [pid for pid in (session.init, session.leader) if pid in table]
    for pid in found:  # grows while it is walked
        found += below.get(pid, ())
    return found


def private_kb(pids: list[int]) -> float:
    """Memory that these processes share with nobody else, by proportional share; infinite when it cannot be known."""
    total, start = 0, time.process_time()
    for pid in pids:
        try:
            lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH):  # it has ended
                continue
            return float("inf")
        total += sum(int(line.split()[1]) for line in lines if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")))
        if time.process_time() - start > _COUNT_S:
            return float("inf")
    return total


def _share_kb(pids: list[int], table: dict[int, Process]) -> float:
    known = private_kb(pids)
    return known if known != float("inf") else sum(table[pid].resident_kb for pid in pids)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
