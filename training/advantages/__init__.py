"""From trajectories to advantages: the estimators by name. To add one: a file with the class, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from solostream.training.advantages.aspo import ASPO
from solostream.training.advantages.base import Advantage, Advantages, shape_early_calls, standardize
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.reinforce import Reinforce
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.spo import SPO, Measure
from solostream.training.advantages.value_tracker import ValueTracker

# name -> constructor. All are given the tracker and the measure of the standardization; most need neither.
ADVANTAGES: dict[str, Callable[[ValueTracker, Measure], Advantage]] = {
    "spo": SPO,
    "grpo": lambda tracker, measure: GRPO(),
    "dr_grpo": lambda tracker, measure: GRPO(divide=False),
    "rloo": lambda tracker, measure: RLOO(),
    "reinforce_pp": lambda tracker, measure: Reinforce("batch"),
    "opo": lambda tracker, measure: Reinforce("opo"),
    "none": lambda tracker, measure: Reinforce("none"),
}

__all__ = [
    "ADVANTAGES",
    "ASPO",
    "GRPO",
    "RLOO",
    "SPO",
    "Advantage",
    "Advantages",
    "Reinforce",
    "ValueTracker",
    "shape_early_calls",
    "standardize",
]
