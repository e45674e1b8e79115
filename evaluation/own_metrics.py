"""Metrics of a user's own, over recorded trajectories: of training (`run.metrics`) and of evaluation (`--metric`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError

Value = float | int | None


class Metric(Protocol):
    """A function; its keywords are its options, in `[metric.NAME]`."""

    def __call__(self, trajectories: Sequence[Trajectory], /) -> Mapping[str, Value]:
        """Numbers by name ("group/what"); None where there is nothing to average."""
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
