"""Runs one Jupyter kernel that the host distrusts: `python -m solostream.sandbox.jupyter.launcher SOCKET [GROUPS]`.

SOCKET is the descriptor of a Unix socket, or the path of one to connect to. Over it the host hands in the settings and
four sockets that already listen and two pipes to print into: the kernel opens no path of its own, so host and kernel
share no folder. GROUPS is the descriptor of a folder in which a memory cgroup can be made.

Two processes. The guard stays outside the confinement and keeps the connection: an `i` interrupts the kernel, the end
of the connection (the host closed it, or died) kills it with all that it started. The kernel goes through the same
confinement as a session of the `fork` backend, before it has a second thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import selectors
import signal
import socket
import sys
import tempfile
from typing import Any, NoReturn, TextIO

from solostream.sandbox.fork.child import linux, memory
from solostream.sandbox.fork.child.isolation import rootfs, seccomp, tiers
from solostream.sandbox.fork.child.isolation.confinement import (
    Confinement,
    Restriction,
    prepare_namespaces,
    prepare_stage,
)
from solostream.sandbox.jupyter import kernel_app

_OWN_MB = 160  # what kernel and guard need besides what the session may use


def main(host_socket: str, groups: str | None = None) -> NoReturn:
    """Confine this process, start the kernel on the sockets that the host passes, and guard it to its end."""
    if host_socket.isdigit():
        host = socket.socket(fileno=int(host_socket))
    else:
        host = socket.socket(socket.AF_UNIX)
        host.connect(host_socket)
    data, fds, _, _ = socket.recv_fds(host, 65536, len(kernel_app.CHANNELS) + 2)
    settings = json.loads(data)
    settings["confinement"]["counted"] = groups is not None
    if groups is not None:
        memory.Group(int(groups), "kernel", settings["memory_mb"] + _OWN_MB).join()
        os.close(int(groups))
    folder = None
    try:
        confinement = tiers.confinement(settings["confinement"])
        if confinement.tier != "namespaces":
            folder = tempfile.mkdtemp(prefix="session-", dir=confinement.folder)
            if os.geteuid() == 0:
                os.chown(folder, tiers.NOBODY, tiers.NOBODY)
    except OSError as error:
        _tell(host, failed=f"isolation {settings['confinement']['isolation']}: {error}")
        os._exit(1)
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)
        _guard(host, pid, folder)
    try:
        calls = linux.Calls()
        prepare_stage(calls)
        if confinement.tier == "namespaces":
            rootfs.mount_proc()
            prepare_namespaces(calls, confinement)
        calls.make()
        tiers.drop_root()
        with open("/proc/self/statm", encoding="utf-8") as mapped:  # which Landlock hides
            # A container's own: without it processes can share no semaphore, and so form no pool.
            shared = ["/dev/shm"] if settings["confinement"].get("contained") else []
            restriction, calls = Restriction(confinement), linux.Calls()
            restriction.prepare(calls, folder or "/tmp", *shared)
            calls.make()
            restriction.forget_paths()
            _serve(host, fds, settings, confinement, mapped)
    except BaseException as error:
        _tell(host, failed=f"{type(error).__name__}: {error}"[:400])
    finally:
        os._exit(1)


def _tell(host: socket.socket, **line: Any) -> None:
    with contextlib.suppress(OSError):
        host.sendall(json.dumps(line).encode() + b"\n")


def _guard(host: socket.socket, pid: int, folder: str | None) -> NoReturn:
    """Until the kernel ends or the host goes; leaves nothing running."""
    kernel = os.pidfd_open(pid)
    asked = b""
    while kernel not in select.select([kernel, host.fileno()], [], [])[0]:
        asked = host.recv(1)
        if not asked:
            break
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(kernel, signal.SIGINT)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(kernel, signal.SIGKILL)
    if folder is not None:
        # Not reaped yet, so the group's number is still its own; without namespaces nothing can leave its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        rootfs.remove(folder)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _tell(host, ended=status)
    os._exit(0)


def _serve(
    host: socket.socket, fds: list[int], settings: dict[str, Any], confinement: Confinement, mapped: TextIO
) -> None:
    stdout, stderr = fds[-2:]
    for fd, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, standard)
        os.close(fd)
    sys.stdout = sys.stderr = None
    kernel_app.repair_streams()
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[assignment, misc]  # there will be no epoll; see below
    app = kernel_app.build(fds, settings["path"], settings["key"], settings["output_bytes"])
    app.initialize([])
    kernel_app.finish_contexts()
    if seccomp.supported():  # ZeroMQ has the epolls that it needs; their watches are a pool that all sessions share
        seccomp.Filter(seccomp.build_absent(os.uname().machine)).install_everywhere()
    # Its threads and libraries have reserved much that they never touch: the limit is on what comes on top.
    limit = int(mapped.read().split()[5]) * resource.getpagesize() + (settings["memory_mb"] << 20)
    mapped.close()
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    _tell(host, ready=confinement.isolation)
    host.close()
    app.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
