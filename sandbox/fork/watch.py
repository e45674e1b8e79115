"""The memory of a session's processes together, where no cgroup can be had."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


def exceeds(pidfd: int, memory_mb: int) -> bool:
    """Whether the process and all below it hold more than `memory_mb` that they share with nobody else."""
    return hold_more(_tree(pidfd), memory_mb)


def hold_more(pids: Collection[int], memory_mb: int) -> bool:
    """Whether these processes together hold more than `memory_mb` that they share with nobody else.

    Two looks: resident pages, cheap but counting what a fork merely inherited; only when those exceed the limit the
    proportional share of anonymous and shared memory, which takes milliseconds.
    """
    limit_kb = memory_mb * 1024
    return sum(map(_resident_kb, pids)) > limit_kb and sum(map(_own_kb, pids)) > limit_kb


def _tree(pidfd: int) -> list[int]:
    """Process numbers, the pidfd's own first. A session's orphans stay below it: it is their subreaper."""
    found: list[int] = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("Pid:"))[4:]))
    for pid in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _resident_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_KB
    return 0


def _own_kb(pid: int) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1])
    return total
