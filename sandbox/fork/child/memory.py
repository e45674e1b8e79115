"""One memory cgroup a session, below a folder that the host made: then the limit binds all its processes together.

Works on either version of cgroups. The session moves itself before it gives up its rights; afterwards it has no way
back to the folder.
"""

from __future__ import annotations

import contextlib
import os

_LIMITS = ("memory.max", "memory.limit_in_bytes")
_SWAP = (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", 1))
_EVENTS = ("memory.events", "memory.oom_control")


def join(folder: int, name: str, memory_mb: int) -> None:
    """Make group `name` in the folder (a descriptor) and move this process into it. Raises OSError."""
    os.mkdir(name, dir_fd=folder)
    limit = memory_mb << 20
    if not any(_write(folder, f"{name}/{file}", limit) for file in _LIMITS):
        raise OSError("the memory limit cannot be set")
    for file, times in _SWAP:
        _write(folder, f"{name}/{file}", times * limit)
    if not _write(folder, f"{name}/cgroup.procs", 0):
        raise OSError("the memory group cannot be entered")


def leave(folder: int, name: str) -> bool:
    """Remove an empty group; whether the kernel had killed a process for its memory."""
    overflowed = False
    for file in _EVENTS:
        with contextlib.suppress(OSError):
            lines = dict(line.split() for line in _read(folder, f"{name}/{file}").splitlines())
            overflowed = overflowed or int(lines.get("oom_kill", 0)) > 0
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=folder)
    return overflowed


def _write(folder: int, path: str, value: int) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        os.write(fd, str(value).encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _read(folder: int, path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)
