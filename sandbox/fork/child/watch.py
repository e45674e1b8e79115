"""The memory of each session's processes together, where no cgroup counts it: a process beside the fork server.

Code cannot leave its session's account. With namespaces, a session is all that is below process 1 of its pid namespace
and below its leader: the kernel gives every orphan to one of them, whatever subreaper gave up its duty. Without, it is
a process group, which seccomp keeps everybody in. What cannot be read, or takes too long to be counted, counts as over
the limit. A session may go over by a sixteenth, and for about a tenth of a second by more.

Pages that a process maps are cheap to count. What the kernel holds for a process besides (mappings, tables of pages,
what is swapped, memory that was shared and is mapped by nobody) needs addresses: it is counted once a second, where a
session has many. Seccomp keeps such shared memory in pieces of SMALL_SHARED bytes, so that their number bounds them.

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
from .isolation.seccomp import SMALL_SHARED

SESSION = struct.Struct("<ii")  # fork server -> watch: the leader, process 1 of its namespace (0: none); with a pidfd
OVER = struct.Struct("<i")  # watch -> fork server: this leader's session is being ended

_EVERY_S = 0.1
_LONGEST = 8 << 20  # bytes that /proc says of a process's mappings, of which there are 65,530 at the most
_COUNT_S = 0.2  # of processor time to count one session's pages: more mappings than that no calculation makes
_SETTLE_S = 1.0  # for the memory of an ended session to come back
_HIDDEN_S = 1.0  # between looks at what a session holds besides pages
_HIDES = SMALL_SHARED // 4096  # so many times more than it maps may a process hold
_MAPPING_KB = 0.3  # of the kernel's memory for a mapping
_SHARED = b"/dev/zero (deleted)\n"  # what /proc calls memory that processes share without a file
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
_CLOSE_RANGE = 436


class Process(NamedTuple):
    """What everybody may read about a process."""

    parent: int
    group: int
    mapped_kb: int
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
        self._inherited_kb = processes()[os.getpid()].mapped_kb  # what every session maps from the start
        self._looked: dict[int, float] = {}  # by leader: when what it hides was last counted

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
            self._looked.pop(leader, None)
        held = {leader: pids for leader, pids in members.items() if pids}
        for leader, pids in held.items():
            resident = sum(table[pid].resident_kb for pid in pids)
            # Resident pages are cheap to know, but count what a fork shares with its parent.
            over = resident > self._limit_kb and private_kb(pids, table) > self._limit_kb
            if over or self._hides_too_much(leader, pids, table):
                self._end(leader)
        if self._room and time.monotonic() > self._settled and self._room.scarce():
            self._end(max(held, key=lambda leader: _share_kb(held[leader], table), default=0))
            self._settled = time.monotonic() + _SETTLE_S

    def _hides_too_much(self, leader: int, pids: list[int], table: dict[int, Process]) -> bool:
        grown = sum(max(0, table[pid].mapped_kb - self._inherited_kb) for pid in pids)
        now = time.monotonic()
        if grown * _HIDES <= self._limit_kb or now < self._looked.get(leader, 0.0) + _HIDDEN_S:
            return False
        self._looked[leader] = now
        return private_kb(pids, table) + hidden_kb(pids) > self._limit_kb

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
                mapped, resident = int(fields[20]) // 1024, int(fields[21]) * _PAGE_KB
                found[int(name)] = Process(int(fields[1]), int(fields[2]), mapped, resident)
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


def private_kb(pids: list[int], table: dict[int, Process]) -> float:
    """Memory that these processes share with nobody else, by proportional share; infinite when it cannot be known."""
    total, start = 0, time.process_time()
    for pid in pids:
        if table[pid].parent in pids and linux.same_memory(pid, table[pid].parent):
            continue  # between vfork and exec: it has none of its own
        text = _text(f"/proc/{pid}/smaps_rollup")
        if text is None or time.process_time() - start > _COUNT_S:
            return float("inf")
        kinds = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(kinds))
    return total


def hidden_kb(pids: list[int]) -> float:
    """What the kernel holds for these processes besides their pages; infinite when it cannot be known."""
    total, start = 0.0, time.process_time()
    for pid in pids:
        maps, status = _text(f"/proc/{pid}/maps"), _text(f"/proc/{pid}/status")
        if maps is None or status is None or time.process_time() - start > _COUNT_S:
            return float("inf")
        total += maps.count(b"\n") * _MAPPING_KB + maps.count(_SHARED) * SMALL_SHARED / 1024
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(b"VmPTE:"))
    return total


def _text(path: str) -> bytes | None:
    """Empty of a process that has ended; None where it cannot be read, or is far longer than any calculation's."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        return b"" if error.errno in (errno.ENOENT, errno.ESRCH) else None
    parts, size = [], 0
    try:
        while size <= _LONGEST and (part := os.read(fd, 65_536)):
            parts.append(part)
            size += len(part)
    except OSError as error:
        return b"" if error.errno in (errno.ENOENT, errno.ESRCH) else None
    finally:
        os.close(fd)
    return b"".join(parts) if size <= _LONGEST else None


def _share_kb(pids: list[int], table: dict[int, Process]) -> float:
    known = private_kb(pids, table)
    return known if known != float("inf") else sum(table[pid].resident_kb for pid in pids)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
