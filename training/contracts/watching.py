"""Contracts of who watches a run: metrics, trackers of experiments, callbacks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from solostream import registry
from solostream.evaluation.own_metrics import measured
from solostream.training import observers
from solostream.training.contracts.learning import batch

Promises = list[tuple[str, bool]]
CONFIG = {"run": {"steps": 1}}


def metric(spec: str, options: dict[str, Any]) -> Promises:
    """It says numbers, the same of the same trajectories, and bears a batch of none."""
    made = registry.bind("metric", spec, options)
    found, again = (measured({spec: made}, batch()) for _ in range(2))
    return [
        ("it says at least one number", len(found) > 0),
        ("the same trajectories, the same numbers", found == again),
        ("of no trajectories it says numbers or None", isinstance(measured({spec: made}, []), dict)),
    ]


def tracker(spec: str, options: dict[str, Any]) -> Promises:
    """It has `log` and `finish`, and takes two rows and an end."""
    with tempfile.TemporaryDirectory(prefix="solostream-check-") as folder:
        made = registry.make("tracker", spec, options, name="check", folder=Path(folder), config=CONFIG)
        if not callable(getattr(made, "log", None)) or not callable(getattr(made, "finish", None)):
            return [("it has log and finish", False)]
        for step in (1, 2):
            made.log({"rl/step": step, "rl/reward/mean": 0.5 * step})
        made.finish()
    return [("it has log and finish", True), ("it takes two rows and an end", True)]


def callback(spec: str, options: dict[str, Any]) -> Promises:
    """It hears of start, steps and end, and answers a step with True, False or None."""
    with tempfile.TemporaryDirectory(prefix="solostream-check-") as folder:
        made = observers.callback(spec, options, folder=Path(folder), config=CONFIG)
        observers.tell([made], "on_start", 0)
        answers = [
            getattr(made, "on_step", lambda *a: None)(step, {"reward/mean": 0.5}, list(batch())) for step in (1, 2)
        ]
        observers.tell([made], "on_end", {"steps": 2})
    return [("its answer to a step is True, False or None", all(a in (True, False, None) for a in answers))]
