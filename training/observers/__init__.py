"""Who watches a run: metrics of each batch, trackers of experiments, callbacks. All are components of the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from solostream import registry
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError

Value = float | int | None
HOOKS = ("on_start", "on_step", "on_end")


class Metric(Protocol):
    """A function; its keywords are its options. Of training (`run.metrics`) and of evaluation (`eval --metric`)."""

    def __call__(self, trajectories: Sequence[Trajectory], /) -> Mapping[str, Value]:
        """Numbers by name ("group/what"); None where there is nothing to average."""
        ...


class RunTracker(Protocol):
    """`run.trackers`. A factory may ask for `name` (of the run), `folder`, `config` (a dict) and `resumed`."""

    def log(self, values: Mapping[str, float]) -> None:
        """One row: "phase/metric" -> number, "phase/step" among them."""
        ...

    def finish(self) -> None: ...


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


def measured(metrics: Mapping[str, Any], trajectories: Sequence[Trajectory]) -> dict[str, Value]:
    """What all `metrics` (name -> `Metric`) say. Raises UserError for what is no number by name."""
    found: dict[str, Value] = {}
    for name, metric in metrics.items():
        values = metric(trajectories)
        if not isinstance(values, Mapping):
            raise UserError(f"metric '{name}' returned a {type(values).__name__}: return numbers by name, a dict")
        for key, value in values.items():
            if not (value is None or isinstance(value, int | float)):
                raise UserError(f"metric '{name}': {key!r} is {value!r}, not a number")
            found[str(key)] = value
    return found


def callback(spec: str, options: Mapping[str, Any] | None, **given: Any) -> Any:
    """Raises UserError for what has none of the hooks."""
    made = registry.make("callback", spec, options, **given)
    if not any(callable(getattr(made, hook, None)) for hook in HOOKS):
        raise UserError(f"callback '{spec}' made a {type(made).__name__}: it needs one of {', '.join(HOOKS)}")
    return made


def tell(callbacks: Sequence[Any], hook: str, *arguments: Any) -> bool:
    """Call `hook` of all that have it; whether one of them returned True."""
    answers = [getattr(one, hook)(*arguments) for one in callbacks if hasattr(one, hook)]
    return any(answer is True for answer in answers)
