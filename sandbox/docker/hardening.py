"""What a container may do, and how it is marked.

Outer boundary, in force for every container: no network, read-only root, sized tmpfs, no capabilities,
no-new-privileges, non-root user, limits on memory, processes and CPU, an init that reaps, no logs on the host's disk, a
seccomp profile.
Not protected from: faults of the kernel that containers share (another machine is for that), and
sessions of one container starving each other of CPU.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE = "solostream-sandbox"
LABEL = "solostream.owner"  # pid of the process that owns the container
LABEL_START = "solostream.owner-start"  # its start time, because pids are used again
LABEL_HOST = "solostream.owner-host"  # boot and pid namespace in which that pid means something


@dataclass(frozen=True, slots=True)
class Container:
    """How one container runs. Its limits hold for all its sessions together; `Limits` holds for each of them."""

    image: str
    runtime: str | None  # None: the daemon's default
    memory_mb: int
    cpus: float | None  # None: all of the machine's
    processes: int
    disk_mb: int  # of the container's own /tmp, which lives in its memory


# System calls that nothing in a session needs and that have opened kernels before, or that draw on a pool which all
# containers and the host share (inotify, asynchronous I/O). Everything else is allowed, because
# the server inside builds user, pid and mount namespaces for each session and then filters much harder by itself.
_FORBIDDEN = """
    acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init fanotify_mark
    finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module inotify_init inotify_init1 io_setup
    io_uring_enter io_uring_register io_uring_setup ioperm iopl kexec_file_load kexec_load keyctl
    lookup_dcookie mbind migrate_pages move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at
    open_tree perf_event_open process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot
    request_key set_mempolicy setdomainname settimeofday swapoff swapon syslog sysfs uselib userfaultfd ustat
    vhangup vm86 vm86old
"""
# Families that no network namespace holds: AF_ALG talks to the kernel, AF_VSOCK to the hypervisor.
_FORBIDDEN_FAMILIES = (38, 40)


def seccomp_profile() -> str:
    """Docker's profile format, as JSON. Foreign architectures' system calls are killed, as none is listed."""
    forbidden = {"names": _FORBIDDEN.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    families = [
        {
            "names": ["socket", "socketpair"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 97,  # EAFNOSUPPORT
            "args": [{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}],
        }
        for family in _FORBIDDEN_FAMILIES
    ]
    machine = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[os.uname().machine]
    return json.dumps(
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [machine], "syscalls": [forbidden, *families]}
    )


def owner_labels() -> dict[str, str]:
    """Marks a container as this process's, so that a later one may remove what this one could not."""
    pid = os.getpid()
    return {LABEL: str(pid), LABEL_START: start_time(pid) or "", LABEL_HOST: _host()}


def owner_is_dead(labels: dict[str, str]) -> bool:
    """True only for an owner of this machine and pid namespace that no longer runs."""
    if labels.get(LABEL_HOST) != _host():
        return False
    return start_time(int(labels[LABEL])) != labels.get(LABEL_START)


def start_time(pid: int) -> str | None:
    """In clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot}:{os.readlink('/proc/self/ns/pid')}"


def host_config(container: Container) -> dict[str, Any]:
    """Arguments of docker's `create_host_config` that hold for every container."""
    return {
        "network_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": container.processes,
        "mem_limit": f"{container.memory_mb}m",
        "memswap_limit": f"{container.memory_mb}m",
        "nano_cpus": round(container.cpus * 1e9) if container.cpus else None,
        "tmpfs": {"/tmp": f"size={container.disk_mb}m,nr_inodes=16384"},
        "init": True,
        "auto_remove": True,
        "log_config": {"Type": "none"},
        "runtime": container.runtime,
    }
