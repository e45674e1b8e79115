"""The first process of a fork server: it outlives the server, and leaves with nothing that was started below it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import NoReturn

from .isolation import rootfs

_FAREWELL_S = 5.0
_ORPHANS_S = 0.5  # between looks at what died below the guard


def keep(host: int, server: int, folder: str | None) -> NoReturn:
    """Wait for the end of the host or of the server; leave with neither running, nor a session, nor its files."""
    pidfd = os.pidfd_open(server)
    watched = [pidfd] if host < 0 else [pidfd, host]
    while not select.select(watched, [], [], _ORPHANS_S)[0]:
        _reap_orphans(server)
    # The server watches the host as well: without namespaces it has groups to kill.
    select.select([pidfd], [], [], _FAREWELL_S)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _, status = os.waitpid(server, 0)
    _end_orphans()
    if folder:
        rootfs.remove(folder)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _reap_orphans(server: int) -> None:
    """Without namespaces, what a dead session leaves is reparented to the guard."""
    with contextlib.suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and dead.si_pid != server:
            os.waitpid(dead.si_pid, 0)


def _end_orphans() -> None:
    """Kill all that is below the guard, whatever killed the server before it could, until nothing is."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            for pid in map(int, file.read().split()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    group = os.getpgid(pid)  # the whole of it at once: it may be forking
                    os.kill(pid, signal.SIGKILL) if group == os.getpgrp() else os.killpg(group, signal.SIGKILL)
        time.sleep(0.005)
