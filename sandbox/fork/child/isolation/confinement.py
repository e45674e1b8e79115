"""One session gives up its rights, between fork and the first line of code that a model wrote.

Tiers, as `tier` names them:
    namespaces  own user, pid and mount namespace inside the fork server's (which has no network and no host files),
                own tmpfs; then all of the next
    landlock    Landlock, seccomp, no_new_privs, no capabilities, rlimits; a process group and a folder of its own
    rlimits     as before without Landlock: files of the same user are open to it
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from dataclasses import dataclass

from .. import linux
from . import landlock, rootfs, seccomp

INSIDE_UID = 1000
_UNTOUCHED = 8 << 30  # bytes of address space that libraries may map beyond the memory limit (CUDA's take 4 GB)
_TIMERS = 1024  # POSIX timers and queued signals, which the kernel counts per user


@dataclass
class Confinement:
    """What the host asked for (memory in MB above what the fork server has mapped), and what the kernel offers."""

    tier: str
    memory_mb: int
    processes: int
    disk_mb: int
    open_files: int
    output_bytes: int
    landlock_abi: int
    seccomp: bytes  # the filter's program, empty where the machine's is not known
    folder: str = "/tmp"  # where sessions write; without namespaces each gets a folder below it

    @property
    def isolation(self) -> str:
        parts = ["namespaces"] if self.tier == "namespaces" else []
        parts += ["seccomp"] if self.seccomp else []
        parts += [f"landlock{self.landlock_abi}"] if self.landlock_abi and self.tier != "rlimits" else []
        return "+".join([*parts, "rlimits"])


def die_first() -> None:
    """Where memory ends for the machine or the container, the kernel ends sessions before anything else. Children
    inherit it; to take it back they would have to write to a /proc, which every tier denies them."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def enter_namespaces(confinement: Confinement) -> None:
    """Called in a new pid namespace, still with the fork server's capabilities."""
    proc_self = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(linux.CLONE_NEWNS)
    rootfs.mount_tmp(confinement.disk_mb)
    rootfs.mount_proc(linux.MS_RDONLY)
    # The namespaces above belong to the fork server's user namespace: whoever breaks into root here does not own them.
    linux.unshare(linux.CLONE_NEWUSER)
    linux.map_user(INSIDE_UID, uid, gid, proc_self)
    os.close(proc_self)


class Restriction:
    """What every tier gives up. Made before the fork: a session pays only for what differs from session to session."""

    def __init__(self, confinement: Confinement) -> None:
        self._own_pids = confinement.tier == "namespaces"
        self._processes = confinement.processes
        self._limits = _limits(confinement)
        self._filter = seccomp.Filter(confinement.seccomp) if confinement.seccomp else None
        self._rules: landlock.Rules | None = None
        if confinement.landlock_abi and confinement.tier != "rlimits":
            readable = ["/"] if self._own_pids else rootfs.readable()
            self._rules = landlock.Rules(confinement.landlock_abi, readable, list(rootfs.DEVICES))

    def apply(self, folder: str, *more: str) -> None:
        """Irrevocable, and inherited by all that this process starts, which may write below `folder` and `more`."""
        os.chdir(folder)
        if os.environ.get("PWD") != folder:
            os.environ["HOME"] = os.environ["TMPDIR"] = os.environ["PWD"] = folder
        with contextlib.suppress(OSError):  # gVisor knows no subreapers
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)  # a daemon stays below its session
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.drop_capabilities()
        if not self._own_pids:
            # It counts every task of the user, ours or not: leave room for those that run now.
            with open("/proc/loadavg") as file:
                running = int(file.read().split()[3].split("/")[1])
            resource.setrlimit(*_capped(resource.RLIMIT_NPROC, self._processes + running))
        if self._rules:
            self._rules.restrict(folder, *more)
        for limit, values in self._limits:  # now: among the descriptors of many sessions no low number may be free
            resource.setrlimit(limit, values)
        if self._filter:
            self._filter.install()
        # After the last change of credentials, which clears it.
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _limits(confinement: Confinement) -> list[tuple[int, tuple[int, int]]]:
    with open("/proc/self/statm") as file:
        mapped, _, _, _, _, data, _ = (int(pages) * resource.getpagesize() for pages in file.read().split())
    memory = confinement.memory_mb << 20
    values = {
        # What may be written to, not what is mapped: libraries map far more than they touch.
        resource.RLIMIT_DATA: data + memory,
        # Shared mappings are no data. What is touched of them a cgroup or the watch counts; this bounds the rest.
        resource.RLIMIT_AS: mapped + memory + _UNTOUCHED,
        resource.RLIMIT_FSIZE: max(confinement.disk_mb << 20, 32 * confinement.output_bytes),
        resource.RLIMIT_NOFILE: confinement.open_files,
        # 1 is the kernel's word for "no core, and no helper started for one"; 0 starts the helper (core(5)).
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_SIGPENDING: _TIMERS,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if confinement.tier == "namespaces":
        values[resource.RLIMIT_NPROC] = confinement.processes
    return [_capped(limit, value) for limit, value in values.items()]


def _capped(limit: int, value: int) -> tuple[int, tuple[int, int]]:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return limit, (value, value)
