"""How the fork server makes sessions: several at a time, each with what it needs made before its fork.

After a fork, parent and child each copy a page when they first write to it. So everything that a session will do before
it serves is made ready once (`linux.Calls`), and between the forks of a batch there are only few lines.
"""

from __future__ import annotations

import _socket  # the C classes: those of `socket` are made and closed by lines of Python
import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import tempfile
from typing import Any, NamedTuple, NoReturn

from . import linux, memory, wire, worker
from .isolation import rootfs
from .isolation.confinement import Confinement, Restriction, prepare_namespaces, prepare_stage

CLOSE_RANGE = 436
_ITS_OWN = 8  # descriptors that a session opens before it closes what it has inherited (five at once)
UNIX, STREAM, _SEQPACKET = int(socket.AF_UNIX), int(socket.SOCK_STREAM), int(socket.SOCK_SEQPACKET)


class Place(NamedTuple):
    """What is made for a session before it is forked."""

    host_end: _socket.socket
    end: _socket.socket  # the session's end of its pair
    folder: str
    init: int | None  # process 1 of its namespace
    group: memory.Group | None
    # Open until the fork: descriptors of process 1 and of the group's list of members, -1 without.
    first: int
    members: int


class Births:
    """Makes sessions, and keeps what of dead ones serves again."""

    def __init__(self, confinement: Confinement, groups: int, options: dict[str, Any]) -> None:
        """`groups`: a descriptor of the folder for memory groups, -1 without."""
        self._confinement, self._groups, self._snapshot = confinement, groups, options["snapshot"]
        self._restriction = Restriction(confinement)
        self._unused: list[memory.Group] = []
        self._count = 0
        # A session is born with as many descriptors as the server has: what it opens itself, to be confined, comes from
        # the few between the two limits, which the server leaves alone.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard - _ITS_OWN, 1), hard))
        self._descriptors = struct.pack("2Q", hard, hard)
        self.own_pids = None  # our own pid namespace, where each session gets one
        if confinement.tier == "namespaces":
            self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._worker = worker.Worker(confinement.output_bytes)
        self._end, self._members = ctypes.c_int(-1), ctypes.c_int(-1)  # of the session that is being forked
        self._calls = None if self.own_pids is None else self._prepare(confinement.folder)

    def fork(self, number: int) -> tuple[list[tuple[Place, int]], OSError | None]:
        """Sessions with their processes, and why there are fewer than `number`."""
        places: list[Place] = []
        born: list[tuple[Place, int]] = []
        refusal = None
        try:
            while len(places) < number:
                places.append(self._place())
        except OSError as error:
            refusal = error
        try:
            for place in places:
                born.append((place, self._start(place)))
        except OSError as error:
            refusal = error
        finally:
            self._come_back()
        for place in places:
            _close(place.first, place.members)
        for place in places[len(born) :]:
            self.abandon(place)
        return born, refusal

    def abandon(self, place: Place) -> None:
        """Nobody will live there."""
        place.host_end.close()
        place.end.close()
        if place.init is not None:
            os.kill(place.init, signal.SIGKILL)
            os.waitpid(place.init, 0)
        if place.folder != self._confinement.folder:
            os.rmdir(place.folder)
        self.give_back(place.group)

    def give_back(self, group: memory.Group | None) -> None:
        """The session has ended: the next may have its group."""
        if group is not None and group.empty():
            self._unused.append(group)

    def _place(self) -> Place:
        """Raises OSError."""
        host_end, end = _socket.socketpair(UNIX, _SEQPACKET)
        folder, init, group, first, members = self._confinement.folder, None, None, -1, -1
        try:
            group = self._group()
            members = -1 if group is None else group.open_members()
            if self.own_pids is None:
                folder = tempfile.mkdtemp(prefix="session-", dir=folder)
            else:
                # The next child lives in a pid namespace of its own. Process 1 only waits: its death is the death of
                # all, and the session dies of signals like any process.
                linux.unshare(linux.CLONE_NEWPID)
                init = os.posix_spawn(rootfs.INIT, ["sleep", "infinity"], {})
                first = os.pidfd_open(init)
        except OSError:
            _close(first, members)
            self.abandon(Place(host_end, end, folder, init, group, -1, -1))
            raise
        finally:
            self._come_back()
        return Place(host_end, end, folder, init, group, first, members)

    def _start(self, place: Place) -> int:
        """The session's process. Raises OSError."""
        self._end.value = place.end.fileno()
        self._members.value = place.members
        if place.first >= 0:
            linux.setns(place.first, linux.CLONE_NEWPID)
        pid = linux.fork()
        if pid == 0:
            self._become_session(place)
        return pid

    def _come_back(self) -> None:
        """The next child lives in our own pid namespace again."""
        if self.own_pids is not None:
            linux.setns(self.own_pids, linux.CLONE_NEWPID)

    def _group(self) -> memory.Group | None:
        if self._groups < 0:
            return None
        if self._unused:
            return self._unused.pop()
        self._count += 1
        return memory.Group(self._groups, str(self._count), self._confinement.memory_mb)

    def _prepare(self, folder: str) -> linux.Calls:
        """All that a session does before it serves."""
        calls, null = linux.Calls(), ctypes.c_int()
        calls.add("setrlimit", resource.RLIMIT_NOFILE, self._descriptors)
        if self._groups >= 0:
            calls.add("write", self._members, memory.JOIN, ctypes.c_size_t(1))
        calls.add("open", b"/dev/null", os.O_RDONLY, into=null)  # no other session's, whose flags it would share
        for standard in range(3):
            calls.add("dup2", null, standard)
        prepare_stage(calls)
        if self.own_pids is not None:
            prepare_namespaces(calls, self._confinement)
        self._restriction.prepare(calls, folder)
        calls.add("dup3", self._end, worker.CHANNEL, os.O_CLOEXEC)
        calls.add_syscall(CLOSE_RANGE, worker.CHANNEL + 1, ctypes.c_uint(0x7FFFFFFF), 0)
        return calls

    def _become_session(self, place: Place) -> NoReturn:
        try:
            calls = self._calls or self._prepare(place.folder)
            calls.make()
            self._worker.serve(self._snapshot)
        except BaseException as error:
            with contextlib.suppress(OSError):
                place.end.send(wire.FAILED + repr(error).encode()[:400])
        finally:
            os._exit(70)


def _close(*descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)
