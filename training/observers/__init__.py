"""Who watches a run: trackers of experiments and callbacks (metrics: `evaluation.own_metrics`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from solostream import registry
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.evaluation.own_metrics import Metric, Value
from solostream.training.config import Config

HOOKS = ("on_start", "on_step", "on_end")


class RunTracker(Protocol):
    """`run.trackers`. A factory may ask for `name` (of the run), `folder`, `config` (a dict) and `resumed`."""

    def log(self, values: Mapping[str, float]) -> None:
        """One row: "phase/metric" -> number, "phase/step" among them."""
        ...

    def finish(self) -> None:
        """The run has ended: send what waits."""


class Callback(Protocol):
    """`run.callbacks`. It may have any of these; a factory may ask for `folder` and `config` (a dict)."""

    def on_start(self, step: int) -> None:
        """Reinforcement learning begins, or goes on, after `step` steps."""
        ...

    def on_step(self, step: int, metrics: Mapping[str, Value], batch: Sequence[Trajectory]) -> bool | None:
        """After each update. True asks the run to end here, with a checkpoint and the last evaluation."""
        ...

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """`summary`: what summary.json says."""
        ...


def callback(spec: str, options: Mapping[str, Any] | None, **given: Any) -> Any:
    """Raises UserError for what has none of the hooks."""
    made = registry.make("callback", spec, options, **given)
    if not any(callable(getattr(made, hook, None)) for hook in HOOKS):
        raise UserError(f"callback '{spec}' made a {type(made).__name__}: it needs one of {', '.join(HOOKS)}")
    return made


def metrics(config: Config) -> dict[str, Metric]:
    """The metrics that `run.metrics` names. Raises UserError."""
    return {name: registry.bind("metric", name, config.metric.get(name)) for name in config.run.metrics}


def callbacks(config: Config, folder: Path) -> list[Any]:
    """The callbacks that `run.callbacks` names, for the run in `folder`. Raises UserError."""
    given = {"folder": folder, "config": config.model_dump(mode="json")}
    return [callback(name, config.callback.get(name), **given) for name in config.run.callbacks]


def open_trackers(config: Config, folder: Path) -> list[RunTracker]:
    """The trackers that `run.trackers` names, opened for the run in `folder`. Raises UserError."""
    given = {"name": folder.name, "folder": folder, "config": config.model_dump(mode="json")}
    return [registry.make("tracker", name, config.tracker.get(name), **given) for name in config.run.trackers]


def tell(callbacks: Sequence[Any], hook: str, *arguments: Any) -> bool:
    """Call `hook` of all that have it; whether one of them returned True."""
    answers = [getattr(one, hook)(*arguments) for one in callbacks if hasattr(one, hook)]
    return any(answer is True for answer in answers)
