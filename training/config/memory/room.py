"""What memory there is: of a GPU, or of this machine and of the container that this process is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available(device: str) -> tuple[int, int]:
    """(free, total) bytes of the CPU's memory, or of the GPU `device`; a container's limit is all that there is."""
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info(torch.device(device))
    lines = (line.split() for line in (PROC / "meminfo").read_text(encoding="utf-8").splitlines())
    found = {name.rstrip(":"): int(size) << 10 for name, size, *_ in lines}
    limits = list(_group_limits())
    free = min([found["MemAvailable"], *(max(limit - used, 0) for limit, used in limits)])
    return free, min([found["MemTotal"], *(limit for limit, _ in limits)])


def _group_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) bytes of each control group around this process that has a limit; of version 2 and of version 1.

    Files that were read and not used lately are cached in the group's name, and are given up as soon as memory is
    asked for: not used.
    """
    v2 = "memory.max", "memory.current", "inactive_file"
    v1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    groups = [*((group, v2) for group in _groups("")), *((group, v1) for group in _groups("memory"))]
    for folder, (limit_file, used_file, cached) in groups:
        try:
            limit, used, statistics = (
                (folder / name).read_text(encoding="utf-8").split() for name in (limit_file, used_file, "memory.stat")
            )
        except OSError:
            continue
        if limit != ["max"]:
            unused = dict(zip(statistics[::2], statistics[1::2], strict=True)).get(cached, "0")
            yield int(limit[0]), int(used[0]) - int(unused)


def _groups(controller: str) -> list[Path]:
    """The group of this process and those that it is in, whose limits hold too. controller: "" in version 2."""
    root = GROUPS / controller
    try:
        lines = [line.split(":", 2) for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    own = next((path for _, names, path in lines if controller in names.split(",")), "/")
    # In a container the path may be the host's, and its own group is mounted as the root.
    path = PurePosixPath(own.lstrip("/"))
    return [root / part for part in (path, *path.parents)]
