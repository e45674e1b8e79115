"""The estimators by name. To add one: a file with the class, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from training.advantage import Advantage
from training.grpo import GRPO
from training.reinforce import Reinforce
from training.rloo import RLOO
from training.spo import SPO, Measure
from training.tracker import ValueTracker

# name -> constructor. All are given the tracker and the measure of the standardisation; most need neither.
ADVANTAGES: dict[str, Callable[[ValueTracker, Measure], Advantage]] = {
    "spo": SPO,
    "grpo": lambda tracker, measure: GRPO(),
    "dr_grpo": lambda tracker, measure: GRPO(divide=False),
    "rloo": lambda tracker, measure: RLOO(),
    "reinforce_pp": lambda tracker, measure: Reinforce("batch"),
    "opo": lambda tracker, measure: Reinforce("opo"),
    "none": lambda tracker, measure: Reinforce("none"),
}
