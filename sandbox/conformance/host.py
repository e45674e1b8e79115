"""What the host can see of the sessions: processes by their tag, files by their name, descriptors, containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path

_FOLDERS = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~")}


def tagged(tag: str) -> dict[int, str]:
    """pid -> state letter of every process of this machine with a thread that carries the tag; zombies count."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (state := _state(entry.path, tag)):
            found[int(entry.name)] = state
    return found


def _state(process: str, tag: str) -> str | None:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"{process}/task"):
            stat = Path(f"{process}/task/{thread}/stat").read_text(encoding="utf-8", errors="replace")
            name, _, rest = stat.partition("(")[2].rpartition(")")
            if name.startswith(tag):
                return rest.split()[0]
    return None


def descendants(root: int, apart: Container[int] = ()) -> dict[int, str]:
    """pid -> name of every process below `root`, without itself, and without those `apart` and what is below them."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                name, _, rest = stat.partition("(")[2].rpartition(")")
                parents.setdefault(int(rest.split()[1]), []).append((int(entry.name), name))
    found: dict[int, str] = {}
    stack = [root]
    while stack:
        for pid, name in parents.get(stack.pop(), []):
            if pid not in apart:
                found[pid] = name
                stack.append(pid)
    return found


def kill(pids: dict[int, str]) -> None:
    """Clean up after a backend that did not."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def files(tag: str) -> list[str]:
    """Paths with the tag in their name, two or three levels deep, in temporary folders, home and working directory."""
    found: set[str] = set()
    for folder in {os.path.realpath(f) for f in [*_FOLDERS, os.getcwd()]}:
        for pattern in (f"*{tag}*", f"*/*{tag}*", f"solostream-*/*/*{tag}*"):
            with contextlib.suppress(OSError):
                found.update(map(str, Path(folder).glob(pattern)))
    return sorted(found)


def remove(paths: Iterable[str]) -> list[str]:
    """Delete what exists of `paths`; returns those that did."""
    found = [path for path in paths if os.path.lexists(path)]
    for path in found:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    return found


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def containers(owner: int | None = None) -> set[str]:
    """Ids of a process's containers (label `solostream.owner` = its pid; default ours); empty without a daemon."""
    if shutil.which("docker") is None:
        return set()
    done = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label=solostream.owner={owner or os.getpid()}"],
        capture_output=True,
        encoding="utf-8",
    )
    return set(done.stdout.split()) if done.returncode == 0 else set()


async def settle(left: Callable[[], object], seconds: float = 5.0) -> object:
    """Poll `left` until it is empty or the time is over; returns what is still there."""
    deadline = time.monotonic() + seconds
    while (still := left()) and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing signals a death elsewhere
        await asyncio.sleep(0.02)
    return still
