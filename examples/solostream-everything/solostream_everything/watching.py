"""Who watches: a metric (of training and of evaluation), a tracker of experiments, a callback."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solostream.agent.trajectory import Trajectory


def turns(trajectories: Sequence[Trajectory], *, above: int = 1) -> dict[str, float | None]:
    """Metric: share of the episodes with more than `above` turns."""
    many = [sum(turn.role == "assistant" for turn in t.turns) > above for t in trajectories]
    return {"own/many_turns": sum(many) / len(many) if many else None}


class Lines:
    """Tracker: one JSON object a row, in a file of the run's folder."""

    def __init__(self, folder: Path, file: str = "lines.jsonl") -> None:
        self._file = (folder / file).open("a")

    def log(self, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps(dict(values)) + "\n")
        self._file.flush()

    def finish(self) -> None:
        self._file.close()


class Enough:
    """Callback: ends the run after `steps` steps, and notes what the summary says."""

    def __init__(self, folder: Path, steps: int = 2) -> None:
        self.folder, self.steps = folder, steps

    def on_step(self, step: int, metrics: Mapping[str, Any], batch: Sequence[Trajectory]) -> bool:
        return step >= self.steps

    def on_end(self, summary: Mapping[str, Any]) -> None:
        (self.folder / "enough.json").write_text(json.dumps({"steps": summary["steps"]}))
