"""Where this process may make memory cgroups: a folder for the sessions of one fork server.

Version 2 where the memory controller is switched on for the children of our own cgroup (a delegated one), else version
1 where its hierarchy is writable. Elsewhere there is none, and RLIMIT_DATA bounds each process by itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from pathlib import Path

_numbers = itertools.count()


@functools.lru_cache(maxsize=1)
def parent(pid: int) -> Path | None:
    """The cgroup of process `pid` (this one) if groups with a memory limit can be made below it."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    with contextlib.suppress(OSError, KeyError):
        folder = Path("/sys/fs/cgroup", own[""])
        controlled = (folder / "cgroup.subtree_control").read_text(encoding="utf-8").split()
        if "memory" in controlled and os.access(folder, os.W_OK):
            return folder
    with contextlib.suppress(OSError, KeyError):
        folder = Path("/sys/fs/cgroup/memory", own["memory"])
        if (folder / "memory.limit_in_bytes").exists() and os.access(folder, os.W_OK):
            return folder
    return None


def make(owner: int) -> Path | None:
    """A new folder that user `owner` may use, or None."""
    above = parent(os.getpid())
    if above is None:
        return None
    for left in above.glob("solostream-*-*"):  # by a host that was killed
        if not Path("/proc", left.name.split("-")[1]).exists():
            remove(left)
    folder = above / f"solostream-{os.getpid()}-{next(_numbers)}"
    try:
        folder.mkdir()
        if (folder / "cgroup.subtree_control").exists():
            (folder / "cgroup.subtree_control").write_text("+memory", encoding="utf-8")
        if os.geteuid() == 0:
            for path in (folder, folder / "cgroup.procs"):
                os.chown(path, owner, owner)
    except OSError:
        remove(folder)
        return None
    return folder


def remove(folder: Path) -> None:
    """Remove the folder and the empty groups in it."""
    with contextlib.suppress(OSError):
        for group in [path for path in folder.iterdir() if path.is_dir()]:
            with contextlib.suppress(OSError):
                group.rmdir()
        folder.rmdir()
