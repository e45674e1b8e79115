"""The fork server: imports what models import, freezes it, and forks one confined process a session.

Two processes. The first (the guard) is what the host starts: it builds the namespaces and the file tree, forks the
second and waits; when the host dies, however, it kills the second. The second is process 1 of a pid namespace (tier
"namespaces"), so that its death is the death of everything below it.

The host asks for a session by sending one end of a socket pair; the answer on it is READY's socket and a pidfd. A few
sessions are forked ahead of demand.
"""

from __future__ import annotations

import _socket  # the C classes: those of `socket` are made and closed by lines of Python
import array
import contextlib
import errno
import fcntl
import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Any, NamedTuple, NoReturn

from . import guard, linux, memory, warm, watch, wire, worker
from .births import CLOSE_RANGE, STREAM, UNIX, Births, Place
from .isolation import rootfs, tiers
from .isolation.confinement import Confinement

_REST_S = 1.0  # after a refused fork
_DELETE_S = 2.0  # that a session's end waits for its files
_BATCH = 4  # sessions that are forked one right after another
_LULL_S = 0.002  # nobody asks: a good time to fork for the pool
_TRIES = 500  # at the folder of a session whose last processes are still dying


def main() -> NoReturn:
    """Arguments: a JSON object; descriptors of the control socket, of the host's pidfd (-1: only probe the tier) and of
    the folder for memory groups (-1: none).
    """
    options = json.loads(sys.argv[1])
    told, host, groups = (_above_channel(int(number)) for number in sys.argv[2:])
    control = socket.socket(fileno=told)
    worker.reserve_channel()
    sys.argv[:] = [""]
    room = memory.Room.of_container()
    options["counted"] = groups >= 0
    try:
        confinement = tiers.confinement(options)
    except OSError as error:
        remedy = "" if isinstance(error, tiers.ClosedPython) else "; use isolation='auto'"
        control.send(json.dumps({"failed": f"isolation {options['isolation']}: {error}{remedy}"}).encode())
        os._exit(1)
    with contextlib.suppress(OSError):  # gVisor knows no subreapers
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)  # what outlives the server comes to the guard
    first = os.fork()
    if first:
        guard.keep(host, first, options["folder"])
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if confinement.tier == "namespaces":
        rootfs.mount_proc()
    if host < 0:
        control.send(json.dumps({"tier": confinement.tier, "isolation": confinement.isolation}).encode())
        os._exit(0)
    resident = warm.up(options["preimport"])
    tiers.drop_root()  # in the weaker tiers only now: a package may be readable to root alone
    control.send(
        json.dumps({"isolation": confinement.isolation + "+cgroup" * (groups >= 0), "resident": resident}).encode()
    )
    watched = watch.start(options["memory_mb"], room) if groups < 0 else None
    _Server(control, host, groups, watched, confinement, options).serve()


def _above_channel(fd: int) -> int:
    """The same descriptor, not inherited, with a number that no session's channel has."""
    if fd < 0:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, worker.CHANNEL + 1)
    os.close(fd)
    return moved


class _Session(NamedTuple):
    number: int
    pid: int
    place: Place


class _Server:
    """The loop: hand out sessions, fork the next ones, reap the dead."""

    def __init__(
        self,
        control: socket.socket,
        host: int,
        groups: int,
        watched: socket.socket | None,
        confinement: Confinement,
        options: dict[str, Any],
    ) -> None:
        self.control, self.host, self.watched = control, host, watched
        self.births = Births(confinement, groups, options)
        self.rest_until = 0.0  # no forks for the pool before that
        self.pool_size = options["pool"]
        self.batch = min(_BATCH, self.pool_size)  # so many are forked at once, unless there is nothing else to do
        self.ready: deque[int] = deque()  # pidfds of sessions that nobody has yet
        self.numbers = itertools.count(1)
        self.held: set[int] = set()  # sessions that have copies, by number
        self.outlived: dict[int, tuple[_Session, int | None]] = {}  # of those, the dead, and how they ended
        self.living: dict[int, _Session] = {}  # by pidfd
        # by the pidfd of the process whose end is the end of all: it, and how the leader ended if that is known
        self.dying: dict[int, tuple[_Session, int, int | None]] = {}
        self.over: set[int] = set()  # leaders whose session is ended for its memory
        self.waiting: deque[_socket.socket] = deque()
        gc.freeze()
        self.events = select.epoll()
        for fd in (control.fileno(), host, *([] if watched is None else [watched.fileno()])):
            self.events.register(fd, select.EPOLLIN)

    def serve(self) -> NoReturn:
        """Until the host closes the control socket or ends."""
        while True:
            events = [fd for fd, _ in self.events.poll(self._patience())]
            # First what the host said: that a session has copies it said before the session ended.
            if self.host in events or not self._listen():
                self.stop()
            for fd in events:
                if fd in self.living:
                    self._end(fd)
                elif fd in self.dying:
                    self._reap(fd)
                elif self.watched is not None and fd == self.watched.fileno():
                    self._hear_of_memory()
            while self.waiting and self.ready:
                self._hand_out(self.waiting.popleft())
            lacking = self.pool_size - len(self.ready)
            due = lacking >= self.batch or (lacking > 0 and not events)
            if self.waiting or (due and time.monotonic() >= self.rest_until):
                self._fork(min(len(self.waiting) or lacking, _BATCH))

    def _patience(self) -> float | None:
        """Seconds to wait for an event; None: as long as it takes."""
        if self.waiting:
            return 0.0
        if len(self.ready) >= self.pool_size:
            return None
        return max(_LULL_S, self.rest_until - time.monotonic())

    def stop(self) -> NoReturn:
        """Where the end of this process is not the end of its sessions, kill their groups first."""
        if self.births.own_pids is None:
            gone = [dead[0] for dead in self.dying.values()] + [dead[0] for dead in self.outlived.values()]
            for session in [*self.living.values(), *gone]:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(session.pid, signal.SIGKILL)
        os._exit(0)

    def _listen(self) -> bool:
        """All that the host has said; False once it has hung up."""
        with contextlib.suppress(BlockingIOError):
            while True:
                flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                data, ancillary, _, _ = self.control.recvmsg(16, socket.CMSG_SPACE(4), flags)
                if not data:
                    return False
                if data[:1] in (wire.HOLD, wire.LET_GO):
                    self._hold(data[:1] == wire.HOLD, *wire.NUMBER.unpack(data[1:]))
                elif ancillary:  # else we are out of descriptors: the asker sees its socket close
                    (asker,) = array.array("i", ancillary[0][2])
                    self.waiting.append(_socket.socket(UNIX, STREAM, 0, asker))
        return True

    def _hand_out(self, asker: _socket.socket) -> None:
        pidfd = self.ready.popleft()
        session = self.living[pidfd]
        passed = array.array("i", [session.place.host_end.fileno(), pidfd])
        with contextlib.suppress(OSError):  # the asker has gone: the session dies with the last copy of its socket
            word = wire.READY + wire.NUMBER.pack(session.number)
            asker.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        asker.close()
        session.place.host_end.close()

    def _fork(self, number: int) -> None:
        """More sessions for the pool; where the kernel refuses, whoever waits for one is told."""
        born, refusal = self.births.fork(number)
        for place, pid in born:
            try:
                self._admit(place, pid)
            except OSError as error:
                refusal = error
        if refusal is not None:
            self._refuse(refusal)

    def _admit(self, place: Place, pid: int) -> None:
        """Into the pool. Raises OSError."""
        try:
            pidfd = os.pidfd_open(pid)
            self._tell_watch(pid, place.init, pidfd)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.births.abandon(place)
            raise
        self.living[pidfd] = _Session(next(self.numbers), pid, place)
        self.events.register(pidfd, select.EPOLLIN)
        self.ready.append(pidfd)

    def _refuse(self, error: OSError) -> None:
        if self.waiting:
            why = f"{error}; raise `ulimit -n`" if error.errno == errno.EMFILE else str(error)
            asker = self.waiting.popleft()
            with contextlib.suppress(OSError):
                asker.send(wire.FAILED + why.encode()[:400])
            asker.close()
        self.rest_until = time.monotonic() + _REST_S

    def _tell_watch(self, pid: int, init: int | None, pidfd: int) -> None:
        if self.watched is None:
            return
        first = os.pidfd_open(init) if init else pidfd
        try:
            socket.send_fds(self.watched, [watch.SESSION.pack(pid, init or 0)], [first])
        finally:
            if init:
                os.close(first)

    def _hear_of_memory(self) -> None:
        """Which sessions the watch ends. Without a watch nothing would bound their memory: its end is ours."""
        assert self.watched is not None
        with contextlib.suppress(BlockingIOError):
            while packet := self.watched.recv(watch.OVER.size, socket.MSG_DONTWAIT):
                self.over.update(watch.OVER.unpack(packet))
            self.stop()

    def _hold(self, on: bool, number: int) -> None:
        if on:
            self.held.add(number)
            return
        self.held.discard(number)
        if number in self.outlived:
            self._take_down(*self.outlived.pop(number))

    def _end(self, pidfd: int) -> None:
        """A session has died. Where it has copies, what they share stays."""
        session = self.living.pop(pidfd)
        self.events.unregister(pidfd)  # closing it is not enough: the host has a copy
        os.close(pidfd)
        if pidfd in self.ready:
            self.ready.remove(pidfd)
            session.place.host_end.close()
        # Process 1 ends only when the leader is buried; without one the leader goes last: its number is the group's.
        status = os.waitpid(session.pid, 0)[1] if session.place.init is not None else None
        if session.number not in self.held:
            self._take_down(session, status)
            return
        self.outlived[session.number] = session, status
        with contextlib.suppress(OSError):
            known = wire.STATUS.pack(status if status is not None else _wait_status(session.pid), self._over(session))
            session.place.end.send(wire.DEAD + known, socket.MSG_DONTWAIT)

    def _take_down(self, session: _Session, status: int | None) -> None:
        """Begin to end what a dead session left. The kernel, or a child of ours, does the work: it may take seconds,
        and other sessions must not wait for it.
        """
        last = session.place.init
        if last is not None:
            os.kill(last, signal.SIGKILL)  # it has ended when its namespace is empty
        else:
            last = linux.fork()
            if last == 0:
                _undertake(session)
        ended = os.pidfd_open(last)
        self.dying[ended] = session, last, status
        self.events.register(ended, select.EPOLLIN)

    def _over(self, session: _Session) -> bool:
        """Whether it was ended for its memory."""
        if self.watched is not None:
            self._hear_of_memory()
        group = session.place.group
        return session.pid in self.over or (group is not None and group.overflowed())

    def _reap(self, ended: int) -> None:
        """Tell the host: it hears of a death when all of it is over."""
        session, last, status = self.dying.pop(ended)
        self.events.unregister(ended)
        os.close(ended)
        os.waitpid(last, 0)
        if status is None:
            _, status = os.waitpid(session.pid, 0)
        overflowed = self._over(session)
        self.over.discard(session.pid)
        self.births.give_back(session.place.group)
        with contextlib.suppress(OSError):
            session.place.end.send(wire.DEAD + wire.STATUS.pack(status, overflowed), socket.MSG_DONTWAIT)
        session.place.end.close()


def _wait_status(pid: int) -> int:
    """How a dead child ended, which stays unreaped."""
    seen = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert seen is not None
    return seen.si_status << 8 if seen.si_code == os.CLD_EXITED else seen.si_status


def _undertake(session: _Session) -> NoReturn:
    """In a process of its own: kill the group and delete the folder of a dead session. Where that takes long, a child
    goes on with it.
    """
    try:
        linux.syscall(CLOSE_RANGE, worker.CHANNEL, 0x7FFFFFFF, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session.pid, signal.SIGKILL)
        child = linux.fork()
        if child:
            select.select([os.pidfd_open(child)], [], [], _DELETE_S)
            os._exit(0)
        for _ in range(_TRIES):
            if rootfs.remove(session.place.folder):
                break
            time.sleep(0.01)
    finally:
        os._exit(0)
