"""One memory cgroup a session, below a folder that the host made: then the limit binds all its processes together.

Works on either version of cgroups. The session moves itself before it gives up its rights; afterwards it has no way
back to the folder. The kernel makes and ends a group slowly, so those of dead sessions serve again.
"""

from __future__ import annotations

import contextlib
import os

_LIMITS = ("memory.max", "memory.limit_in_bytes")
_SWAP = (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", 1))
# For a process of one thread both are the same, but for `tasks` (version 1) the kernel does not stop all forks of the
# machine while it moves it.
_MEMBERS = ("tasks", "cgroup.procs")
_EVENTS = ("memory.events", "memory.oom_control")
JOIN = b"0"  # written to the list of a group's members: the writer


class Group:
    """A group below `folder` (a descriptor); one session after another may use it. Raises OSError."""

    def __init__(self, folder: int, name: str, memory_mb: int) -> None:
        os.mkdir(name, dir_fd=folder)
        limit = memory_mb << 20
        try:
            version = next((file for file in _LIMITS if _exists(folder, f"{name}/{file}")), _LIMITS[0])
            _write(folder, f"{name}/{version}", limit)
        except OSError:
            os.rmdir(name, dir_fd=folder)
            raise
        for file, times in _SWAP:
            with contextlib.suppress(OSError):  # a machine without swap
                _write(folder, f"{name}/{file}", times * limit)
        self._folder, self._kills = folder, 0
        self._members, self._events = (
            next((f"{name}/{file}" for file in files if _exists(folder, f"{name}/{file}")), "")
            for files in (_MEMBERS, _EVENTS)
        )

    def open_members(self) -> int:
        """A descriptor to which `JOIN` is written. Raises OSError."""
        return os.open(self._members, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._folder)

    def join(self) -> None:
        """Move this process into it. Raises OSError."""
        fd = self.open_members()
        try:
            os.write(fd, JOIN)
        finally:
            os.close(fd)

    def overflowed(self) -> bool:
        """Whether the kernel has killed a process for its memory since the last question."""
        kills = 0
        with contextlib.suppress(OSError):
            kills = int(_read(self._folder, self._events).partition(b"oom_kill ")[2].split(b"\n")[0] or 0)
        more = kills > self._kills
        self._kills = kills
        return more

    def empty(self) -> bool:
        """Whether the next session may have it."""
        try:
            return not _read(self._folder, self._members)
        except OSError:  # the host has taken it away
            return False


def _exists(folder: int, file: str) -> bool:
    try:
        return bool(os.stat(file, dir_fd=folder))
    except OSError:
        return False


def _read(folder: int, file: str) -> bytes:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _write(folder: int, file: str, value: int) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


class Room:
    """The memory of the container that we run in, if it is one. Opened before the file tree is left behind."""

    def __init__(self, limit: int, usage: int, stat: int) -> None:
        self.descriptors = (usage, stat)
        self._limit = limit

    @classmethod
    def of_container(cls) -> Room | None:
        """None where no memory limit holds for all of us together."""
        for folder, limit, usage in (
            ("/sys/fs/cgroup", "memory.max", "memory.current"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):
                with open(f"{folder}/{limit}", encoding="utf-8") as file:
                    size = int(file.read())  # "max": no limit
                if size < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
                    opened = [
                        os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in (usage, "memory.stat")
                    ]
                    return cls(size, *opened)
        return None

    def scarce(self) -> bool:
        """Whether less than a sixteenth is left, not counting what the kernel can drop by itself."""
        usage, stat = (os.pread(fd, 16384, 0).decode() for fd in self.descriptors)
        counts = dict(line.split() for line in stat.splitlines())
        cache = sum(int(counts.get(name, 0)) for name in ("inactive_file", "active_file"))
        return self._limit - (int(usage) - cache) < self._limit // 16
