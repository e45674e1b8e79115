"""The host's handle on the fork server: start it, ask it for sessions, notice its death."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from solostream.errors import SandboxError, UserError
from solostream.sandbox.fork import cgroup
from solostream.sandbox.fork.child import wire
from solostream.sandbox.fork.child.isolation import landlock, rootfs
from solostream.sandbox.types import Limits

log = logging.getLogger("solostream.sandbox.fork")

_NOBODY = 65534  # what root becomes, see child/zygote.py
_DESCRIPTORS = 16_384
_START_S = 120.0  # imports on a loaded machine
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); import child.zygote as z; del sys.path[0]; z.main()"


@dataclass(frozen=True, slots=True)
class ForkOptions:
    """What the fork server is told."""

    isolation: str
    limits: Limits
    snapshot: bool
    pool: int
    preimport: tuple[str, ...]
    landlock_abi: int


class ForkServer:
    """One running fork server. Thread-safe: every question has a socket of its own."""

    def __init__(self, options: ForkOptions) -> None:
        """Blocks until the server is ready (about a second). Raises SandboxError, UserError."""
        self.owner = os.getpid()
        self.folder = "" if options.isolation == "namespaces" else _session_folder()
        _allow_descriptors()
        self.memory_groups = cgroup.make(_NOBODY)
        self._lock = threading.Lock()
        try:
            self._process, self._control, hello = _launch(options, self.folder, self.memory_groups)
        except BaseException:
            self._tidy()
            raise
        self.isolation: str = hello["isolation"]
        self.resident = frozenset[str](hello["resident"])
        log.info("fork server ready: %s; imported: %s", self.isolation, ", ".join(sorted(self.resident)) or "nothing")

    @property
    def alive(self) -> bool:
        """Whether its process runs and is this process's own child."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self) -> socket.socket:
        """Ask for a session: the socket on which it will come, not blocking. Raises SandboxError."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise SandboxError(f"no socket for a session: {error}; raise `ulimit -n`") from error
        ours.setblocking(False)
        try:
            with theirs, self._lock:
                socket.send_fds(self._control, [b"s"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise SandboxError(f"the fork server is gone ({error})") from error
        return ours

    def tell(self, word: bytes, number: int) -> None:
        """HOLD: keep what session `number` shares with its copies when it dies; LET_GO: end it."""
        with contextlib.suppress(OSError), self._lock:  # a server that is gone has taken all with it
            self._control.send(word + wire.NUMBER.pack(number))

    def stop(self) -> None:
        """End the server and every session. Blocks for a few milliseconds. Idempotent."""
        self._control.close()
        if self.owner == os.getpid():
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._tidy()

    def _tidy(self) -> None:
        if self.folder:
            rootfs.remove(self.folder)
        if self.memory_groups is not None:
            cgroup.remove(self.memory_groups)


@functools.cache
def probe(isolation: str, landlock_abi: int = landlock.NEWEST) -> tuple[str, str]:
    """(tier, what is in force) that this machine grants, found by trying it. Raises UserError, SandboxError."""
    process, control, hello = _launch(ForkOptions(isolation, Limits(), False, 0, (), landlock_abi), None, None)
    control.close()
    process.wait()
    return hello["tier"], hello["isolation"] + ("+cgroup" if cgroup.parent(os.getpid()) else "")


def _allow_descriptors() -> None:
    """Raise the soft limit, usually 1,024, as far as allowed: a session takes two descriptors, a call three more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _session_folder() -> str:
    """Where sessions without a file system of their own write."""
    folder = tempfile.mkdtemp(prefix="solostream-")
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
    return folder


def _launch(
    options: ForkOptions, folder: str | None, groups: Path | None
) -> tuple[subprocess.Popen[bytes], socket.socket, dict[str, Any]]:
    """Start a fork server, or without `folder` a probe that only reports its tier. Raises SandboxError, UserError."""
    told = {**asdict(options.limits), "folder": folder}
    told |= {name: getattr(options, name) for name in ("isolation", "snapshot", "pool", "preimport", "landlock_abi")}
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The server watches this process itself: its end is noticed even when a forked copy of it keeps the socket open.
    host = -1 if folder is None else os.pidfd_open(os.getpid())
    groups_fd = -1 if groups is None else os.open(groups, os.O_RDONLY | os.O_DIRECTORY)
    passed = [fd for fd in (theirs.fileno(), host, groups_fd) if fd >= 0]
    command = [sys.executable, "-I", "-X", "utf8", "-c", _BOOT, str(Path(__file__).parent)]
    command += [json.dumps(told), *map(str, (theirs.fileno(), host, groups_fd))]
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command,
                env=_environment(),
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
            )
        finally:
            for fd in passed[1:]:
                os.close(fd)
            theirs.close()
        control.settimeout(_START_S)
        with contextlib.suppress(OSError):
            answer = control.recv(65536)
            if answer:
                hello = json.loads(answer)
                if "failed" not in hello:
                    control.settimeout(None)
                    return process, control, hello
                process.wait()
                control.close()
                raise UserError(hello["failed"])
        process.kill()
        process.wait()
        control.close()
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
    raise SandboxError(f"the fork server did not start: {last[0] if last else 'no answer'}")


def _environment() -> dict[str, str]:
    """All that a session will find in os.environ: nothing of the host's but its time zone."""
    fixed = {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"]),
        "LANG": "C.UTF-8",
        "HOME": "/tmp",
        "MALLOC_ARENA_MAX": "2",  # glibc reserves 64 MB of address space per arena, which counts
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONINTMAXSTRDIGITS": "0",  # for the Pythons that a session starts, as `worker.prepare` for itself
        "MPLBACKEND": "module://matplotlib.backends.backend_agg",  # pictures without a screen; see child/display.py
    }
    return fixed | ({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {})
