"""Who watches a run: trackers of experiments and callbacks (metrics: `evaluation.own_metrics`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from solostream import registry
from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.evaluation.own_metrics import Value

HOOKS = ("on_start", "on_step", "on_end")


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
