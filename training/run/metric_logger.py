"""Metrics go to `metrics.jsonl` and TensorBoard always, and to the trackers that a run asks for."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from solostream.errors import UserError
from solostream.evaluation.training_curves import HELD_OUT_PROBLEMS
from solostream.training.observers import RunTracker

Value = float | int | None


class MetricLogger:
    """One row a call. `rows` holds everything logged so far, an interrupted run's rows included."""

    def __init__(self, folder: Path, *, trackers: Sequence[RunTracker] = ()) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._path = folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = read(self._path) if self._path.exists() else []
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        self._open_board = partial(EventFileWriter, str(folder / "tensorboard"), flush_secs=20)
        self._events = folder / "tensorboard"
        self._board = self._open_board()
        self._event, self._summary = Event, Summary
        self._others = list(trackers)

    def keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop the rows that are not `wanted`: a resumed run will write them again. TensorBoard starts anew."""
        self.rows = [row for row in self.rows if wanted(row)]
        draft = self._path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        self._file.close()
        os.replace(draft, self._path)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        self._board.close()
        for old in self._events.glob("events.out.tfevents.*"):
            old.unlink()
        self._board = self._open_board()
        for row in self.rows:
            self._show(row)

    def holds(self, phase: str, step: int) -> bool:
        """Whether a row of `phase` was logged at `step`."""
        return any((row["phase"], row["step"]) == (phase, step) for row in self.rows)

    def log(self, phase: str, step: int, metrics: Mapping[str, Value]) -> None:
        """`metrics` maps `group/name` to a number; None (nothing to average) and non-finite numbers become null."""
        clean = {k: v if v is None or math.isfinite(v) else None for k, v in metrics.items()}
        now = time.time()
        row = {"phase": phase, "step": step, "time": round(now, 3), **clean}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._show(row)
        for other in self._others:
            other.log({f"{phase}/step": step, **_numbers(row)})

    def log_problems(self, step: int, rewards: Mapping[str, float]) -> None:
        """What each held-out problem earned at `step`, into `held_out.jsonl`: a change is judged problem by problem.

        A resumed run may write a step again: the later line counts.
        """
        with self._path.with_name(HELD_OUT_PROBLEMS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "rewards": rewards}) + "\n")

    def _show(self, row: Mapping[str, Any]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=v) for tag, v in _numbers(row).items()]
        self._board.add_event(self._event(wall_time=row["time"], step=row["step"], summary=self._summary(value=values)))

    def close(self) -> None:
        """Close the files and finish the trackers."""
        self._file.close()
        self._board.close()
        for other in self._others:
            other.finish()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row that have a value, under the names that trackers show."""
    return {f"{row['phase']}/{k}": v for k, v in row.items() if k not in ("phase", "step", "time") and v is not None}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that a kill cut short is left out. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read metrics: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}:{number} is not JSON: repair or remove that line") from None
    return rows
