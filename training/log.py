"""The write-ahead trajectory log: every finished trajectory is on disk before it can be trained on.

One JSON object a line (`Trajectory.to_dict`), keyed by its dispatch event; an update adds a line with the advantages
that it gave, by event: {"learnt": step, "advantages": {event: advantage}}. `agent.records` reads both back.
Writing happens in the log's own thread, off the token path; a line is handed to the kernel before the episode counts as
finished, so a killed process loses none.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.trajectory import Trajectory


class TrajectoryLog:
    """Appends to `path`; `keep_bytes` cuts an existing file there first (None: only a torn last line is cut)."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 - closed in close()
        end = _whole_lines(path)
        os.truncate(path, end if keep_bytes is None else min(keep_bytes, end))
        self._file.seek(0, os.SEEK_END)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="trajectory-log")

    async def append(self, *trajectories: Trajectory) -> None:
        """Returns when the lines are with the kernel. Raises OSError (a full disk)."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, trajectories)

    async def learnt(self, step: int, batch: Sequence[Trajectory], advantages: Sequence[float]) -> None:
        """Update `step` weighed each trajectory of `batch` with its advantage. Raises OSError."""
        given = {t.dispatch.event: round(a, 6) for t, a in zip(batch, advantages, strict=True)}
        line = json.dumps({"learnt": step, "advantages": given}, separators=(",", ":")).encode() + b"\n"
        await asyncio.get_running_loop().run_in_executor(self._writer, self._put, line)

    def _write(self, trajectories: Sequence[Trajectory]) -> None:
        self._put(b"".join(t.to_json().encode() + b"\n" for t in trajectories))

    def _put(self, lines: bytes) -> None:
        self._file.write(lines)
        self._file.flush()

    def sync(self) -> int:
        """Everything appended so far is on the disk; the file's size in bytes. A checkpoint records it."""
        return self._writer.submit(self._sync).result()

    def _sync(self) -> int:
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._writer.shutdown()
        self._file.close()


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last newline: what a kill in mid-write leaves behind it is not a record."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 65_536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
