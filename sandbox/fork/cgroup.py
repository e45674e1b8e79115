"""One memory cgroup a session, where this process may make some: then the limit binds all of its processes together.

Version 2 where the memory controller is switched on for the children of our own cgroup (a delegated, empty one),
else version 1 where its hierarchy is writable.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A session's cgroup: kills its processes at the limit, page cache and tmpfs included."""

    path: Path

    def add(self, pid: int) -> None:
        """Move a process, and all it will start, into the group. Raises OSError."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def overflowed(self) -> bool:
        """Whether the kernel has killed a process of the group for its memory."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                lines = dict(line.split() for line in (self.path / name).read_text().splitlines())
                return int(lines.get("oom_kill", 0)) > 0
        return False

    def remove(self) -> bool:
        """False while a process is still in it."""
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def available() -> bool:
    """Whether this process may make memory groups."""
    return _parent(os.getpid()) is not None


def create(memory_mb: int) -> MemoryGroup | None:
    """A new group, or None where none can be made."""
    parent = _parent(os.getpid())
    if parent is None:
        return None
    path = parent / f"solostream-{os.getpid()}-{next(_numbers)}"
    limit = str(memory_mb << 20)
    try:
        path.mkdir()
        if (path / "memory.max").exists():
            (path / "memory.max").write_text(limit)
            with contextlib.suppress(OSError):
                (path / "memory.swap.max").write_text("0")
        else:
            (path / "memory.limit_in_bytes").write_text(limit)
            with contextlib.suppress(OSError):
                (path / "memory.memsw.limit_in_bytes").write_text(limit)
    except OSError:
        with contextlib.suppress(OSError):
            path.rmdir()
        return None
    return MemoryGroup(path)


@functools.lru_cache(maxsize=1)
def _parent(pid: int) -> Path | None:
    """The folder under which process `pid` may make groups with a memory limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    candidates = [(Path("/sys/fs/cgroup", own[""]), "cgroup.subtree_control")] if "" in own else []
    candidates += [(Path("/sys/fs/cgroup/memory", own["memory"]), "memory.limit_in_bytes")] if "memory" in own else []
    for folder, proof in candidates:
        with contextlib.suppress(OSError):
            offered = proof != "cgroup.subtree_control" or "memory" in (folder / proof).read_text().split()
            if offered and (folder / proof).exists() and os.access(folder, os.W_OK):
                return folder
    return None
