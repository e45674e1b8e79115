"""Trajectories on disk: one JSON object a line, written ahead of their use, read back however the file ended.

A line is `Trajectory.to_dict`, keyed by its dispatch event; an update adds a line with the advantages that it gave, by
event: {"update": step, "advantages": {event: advantage}}, where an advantage that is not the same for every token is a
list, one number an assistant turn: the mean over its tokens (null where it has none).

The log writes in a thread of its own, off the token path; a line is handed to the kernel before the episode counts as
finished, so a killed process loses none. A file that is half-written, damaged in the middle or still growing is read as
far as it goes.
"""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError

# What runs and evaluations call their trajectories; the first that exists is read.
FILE_NAMES = ("trajectories.jsonl", "samples.jsonl")

Given = float | list[float | None]  # the advantage of a trajectory, or of each of its assistant turns


@dataclass(frozen=True, slots=True)
class Line:
    """One complete line of a JSONL file: bytes `offset:offset + length`, newline included, and their CRC-32.

    record: the JSON object, extra keys ("step", "sample") included; None when `damage` says what is wrong.
    update: advantages by dispatch event, on a line that an update of the policy wrote; such a line has no trajectory.
        One number for all tokens of a trajectory, or one for each of its assistant turns.
    """

    number: int
    offset: int
    length: int
    crc: int
    record: dict[str, Any] | None
    trajectory: Trajectory | None
    damage: str | None
    update: dict[int, Given] | None = None


def find_file(place: Path) -> Path:
    """The JSONL file of a run or evaluation: `place` itself or a known name in the folder. Raises UserError."""
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"no run at {place}; give a run or evaluation folder, or a .jsonl file of trajectories")
    found = next((place / name for name in FILE_NAMES if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{place} holds neither {' nor '.join(FILE_NAMES)}; is it a run or an evaluation folder?")
    return found


def read_lines(path: Path, offset: int = 0, number: int = 0) -> Iterator[Line]:
    """Complete lines from byte `offset` (whose line is the `number`th, from 0) on.

    A last line without a newline is still being written: it is left for the next call.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            if raw.strip():
                yield _parse(raw, offset, number)
            offset, number = offset + len(raw), number + 1


def read_line(path: Path, offset: int, length: int) -> dict[str, Any]:
    """The JSON object at bytes `offset:offset + length`. Raises ValueError when it is not there any more."""
    with path.open("rb") as file:
        file.seek(offset)
        record: dict[str, Any] = json.loads(file.read(length))
    return record


def _parse(raw: bytes, offset: int, number: int) -> Line:
    record = trajectory = damage = update = None
    try:
        record = json.loads(raw)
        if "update" in record:
            update = {int(event): _given(advantage) for event, advantage in record["advantages"].items()}
        else:
            trajectory = Trajectory.from_dict(record)
    except KeyError as error:
        damage = f"field {error} is missing"
    except (ValueError, TypeError, AttributeError) as error:
        damage = f"not a trajectory: {error}"
    crc = zlib.crc32(raw)
    return Line(number, offset, len(raw), crc, record if damage is None else None, trajectory, damage, update)


def _given(advantage: Any) -> Given:
    if isinstance(advantage, list):
        return [None if a is None else float(a) for a in advantage]
    return float(advantage)


def summarized(trajectory: Trajectory, values: np.ndarray) -> Given:
    """values: float64 [action tokens]; one number when all are equal (0 when there is none), else one a turn."""
    if len(values) == 0 or (values == values[0]).all():
        return round(float(values[0]), 6) if len(values) else 0.0
    spans = [trajectory.action_mask[turn.start : turn.end] for turn in trajectory.turns if turn.role == "assistant"]
    parts = np.split(values, np.cumsum([int(mask.sum()) for mask in spans])[:-1])
    return [round(float(part.mean()), 6) if len(part) else None for part in parts]


class TrajectoryLog:
    """Appends to `path`; `keep_bytes` cuts an existing file there first (None: only a torn last line is cut)."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 - closed in close()
        end = _whole_lines(path)
        os.truncate(path, end if keep_bytes is None else min(keep_bytes, end))
        self._file.seek(0, os.SEEK_END)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="trajectory-log")
        self._one_write = asyncio.Lock()
        self._pending: list[Trajectory] = []  # of the write that comes next ...
        self._next: asyncio.Task[None] | None = None  # ... which everybody who appended to it waits for
        self._closed = False

    async def append(self, *trajectories: Trajectory) -> None:
        """Returns when the lines are with the kernel. Raises OSError (a full disk).

        What comes while a write runs goes with the next one: a step to another thread and back costs more than the
        landing of an episode, so many share it.
        """
        self._pending += trajectories
        if self._next is None:
            self._next = asyncio.ensure_future(self._write_pending())
        await asyncio.shield(self._next)  # that one waiter is cancelled must not stop the others' lines

    async def _write_pending(self) -> None:
        async with self._one_write:
            trajectories, self._pending, self._next = self._pending, [], None
            if not self._closed:  # else whoever waited for it has gone
                await asyncio.get_running_loop().run_in_executor(self._writer, self._write, trajectories)

    async def update(self, step: int, batch: Sequence[Trajectory], advantages: Sequence[np.ndarray]) -> None:
        """Update `step` weighed the action tokens of each trajectory with its array of `advantages`. Raises OSError."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write_update, step, batch, advantages)

    def _write_update(self, step: int, batch: Sequence[Trajectory], advantages: Sequence[np.ndarray]) -> None:
        given = {t.dispatch.event: summarized(t, values) for t, values in zip(batch, advantages, strict=True)}
        self._put(json.dumps({"update": step, "advantages": given}, separators=(",", ":")).encode() + b"\n")

    def _write(self, trajectories: Sequence[Trajectory]) -> None:
        self._put(b"".join(t.take_line() + b"\n" for t in trajectories))

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
        """Write what still waits, then close the file."""
        self._closed = True
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
