"""One session gives up its rights, between fork and the first line of code that a model wrote.

Tiers, as `tier` names them:
    namespaces  own user, pid and mount namespace inside the fork server's (which has no network and no host files),
                own tmpfs; then all of the next
    landlock    Landlock, seccomp, no_new_privs, no capabilities, rlimits; a process group and a folder of its own
    rlimits     as before without Landlock: files of the same user are open to it
"""

from __future__ import annotations

import os
import resource
import signal
import struct
from dataclasses import dataclass

from .. import linux
from . import landlock, rootfs, seccomp

INSIDE_UID = 1000
_HERE = -100  # AT_FDCWD
_UNLIMITED = 2**64 - 1
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
    counted: bool = True  # a cgroup counts a session's memory

    @property
    def isolation(self) -> str:
        """What is in force, as one word a mechanism: "namespaces+seccomp+landlock6+rlimits"."""
        parts = ["namespaces"] if self.tier == "namespaces" else []
        parts += ["seccomp"] if self.seccomp else []
        parts += [f"landlock{self.landlock_abi}"] if self.landlock_abi and self.tier != "rlimits" else []
        return "+".join([*parts, "rlimits"])


def prepare_stage(calls: linux.Calls) -> None:
    """A session of its own in the kernel's sense too, and the first to die: where memory ends for the machine or the
    container, the kernel ends sessions before anything else. Children inherit that; to take it back they would have to
    write to a /proc, which every tier denies them.
    """
    calls.add_write(_HERE, "/proc/self/oom_score_adj", "1000", needed=False)
    calls.add("setsid")  # in every tier: kill(0) crosses a pid namespace to the rest of the process group


def prepare_namespaces(calls: linux.Calls, confinement: Confinement) -> None:
    """To be made in a new pid namespace, still with the fork server's capabilities."""
    proc_self = linux.open_folder(calls, "/proc/self")
    calls.add("unshare", linux.CLONE_NEWNS)
    rootfs.prepare_session(calls, confinement.disk_mb)
    # The namespaces above belong to the fork server's user namespace: whoever breaks into root here does not own them.
    calls.add("unshare", linux.CLONE_NEWUSER)
    linux.map_user(calls, INSIDE_UID, os.getuid(), os.getgid(), proc_self)
    calls.add("close", proc_self)


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
            # What is mapped of the host's /dev/zero is memory that nobody can count.
            devices = [d for d in rootfs.DEVICES if self._own_pids or confinement.counted or d != rootfs.ZERO]
            self._rules = landlock.Rules(confinement.landlock_abi, readable, devices)

    def prepare(self, calls: linux.Calls, folder: str, *more: str) -> None:
        """Irrevocable once made, and inherited by all that the caller starts, which may write below `folder` and
        `more`.
        """
        os.environ["HOME"] = os.environ["TMPDIR"] = os.environ["PWD"] = folder
        calls.add("chdir", folder.encode())
        # A daemon stays below its session; gVisor knows no subreapers.
        calls.add("prctl", linux.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, needed=False)
        calls.add("prctl", linux.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        linux.drop_capabilities(calls)
        limits = dict(self._limits)
        if not self._own_pids:
            # It counts every task of the user, ours or not: leave room for those that run now.
            with open("/proc/loadavg", encoding="utf-8") as file:
                running = int(file.read().split()[3].split("/")[1])
            limits |= [_capped(resource.RLIMIT_NPROC, self._processes + running)]
        if self._rules:
            self._rules.prepare(calls, folder, *more)
        for limit, value in limits.items():  # now: among the descriptors of many sessions no low number may be free
            calls.add("setrlimit", limit, struct.pack("2Q", *[value & _UNLIMITED] * 2))
        if self._filter:
            self._filter.prepare(calls)
        # After the last change of credentials, which clears it.
        calls.add("prctl", linux.PR_SET_PDEATHSIG, signal.SIGKILL.value, 0, 0, 0)

    def forget_paths(self) -> None:
        """In a process that is confined and does not close all else that it has inherited."""
        if self._rules:
            self._rules.close()


def _limits(confinement: Confinement) -> dict[int, int]:
    with open("/proc/self/statm", encoding="utf-8") as file:
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
        resource.RLIMIT_RTPRIO: 0,  # of a user whom the machine lets play music, say
        resource.RLIMIT_NICE: 0,
    }
    if confinement.tier == "namespaces":
        values[resource.RLIMIT_NPROC] = confinement.processes
    return dict(_capped(limit, value) for limit, value in values.items())


def _capped(limit: int, value: int) -> tuple[int, int]:
    hard = resource.getrlimit(limit)[1]
    return limit, value if hard == resource.RLIM_INFINITY else min(value, hard)
