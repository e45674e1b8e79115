"""Reading trajectories back from JSONL, however the file ended: half-written, damaged in the middle, still growing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.behaviour import observe
from agent.metrics import Sample
from agent.trajectory import Trajectory
from sandbox.errors import UserError

# What runs and evaluations call their trajectories; the first that exists is read.
FILE_NAMES = ("trajectories.jsonl", "samples.jsonl")


@dataclass(frozen=True, slots=True)
class Line:
    """One complete line of a JSONL file: bytes `offset:offset + length`, newline included, and their CRC-32.

    record: the JSON object, extra keys ("step", "sample") included; None when `damage` says what is wrong.
    learnt: advantages by dispatch event, on a line that an update of the policy wrote; such a line has no trajectory.
    """

    number: int
    offset: int
    length: int
    crc: int
    record: dict[str, Any] | None
    trajectory: Trajectory | None
    damage: str | None
    learnt: dict[int, float] | None = None


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
        return json.loads(file.read(length))


def reduce(trajectory: Trajectory) -> Sample:
    """What the metrics need of a trajectory."""
    return Sample(trajectory.task_id, trajectory.reward, trajectory.answer, trajectory.ending, observe(trajectory))


def read_samples(place: Path) -> tuple[list[Sample], list[str]]:
    """All samples of a run or evaluation, and one complaint a damaged line. Raises UserError when there are none."""
    path = find_file(place)
    samples, damage = [], []
    for line in read_lines(path):
        if line.trajectory is not None:
            samples.append(reduce(line.trajectory))
        elif line.damage is not None:
            damage.append(f"{path.name}:{line.number + 1}: {line.damage}")
    if not samples:
        why = f"all {len(damage)} lines are damaged, the first: {damage[0]}" if damage else "it has no whole line"
        raise UserError(f"{path} holds no complete trajectory: {why}")
    return samples, damage


def _parse(raw: bytes, offset: int, number: int) -> Line:
    record = trajectory = damage = learnt = None
    try:
        record = json.loads(raw)
        if "learnt" in record:
            learnt = {int(event): float(advantage) for event, advantage in record["advantages"].items()}
        else:
            trajectory = Trajectory.from_dict(record)
    except KeyError as error:
        damage = f"field {error} is missing"
    except (ValueError, TypeError, AttributeError) as error:
        damage = f"not a trajectory: {error}"
    crc = zlib.crc32(raw)
    return Line(number, offset, len(raw), crc, record if damage is None else None, trajectory, damage, learnt)
