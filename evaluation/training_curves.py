"""What of a training run is drawn, by the names under which training writes it to `metrics.jsonl`.

The PNGs of a run (`solostream.training.run.plots`) and `report.html` (`solostream.viewer.report`) draw from here; that$
a run writes every one of these names is tested on a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Curve:
    """One number of the rows of a phase. `key`: its name in a row; `label`: what a legend or a card calls it."""

    key: str
    label: str
    phase: Literal["cold_start", "rl", "eval"] = "rl"


COLD_START = Curve("loss", "cold start", "cold_start")  # mean negative log-likelihood, nats a token
REWARD = Curve("reward/mean", "batch mean")
TRAIN_ACCURACY = Curve("reward/accuracy", "training batches")
ACCURACY = Curve("accuracy", "held out, sampled", "eval")
ACCURACY_GREEDY = Curve("accuracy_greedy", "held out, greedy", "eval")
FIRST_CALL = Curve("code/first_call_token", "first call")
ENTROPY = Curve("learner/entropy", "entropy")  # nats a token
LOSS = Curve("learner/loss", "loss")
CLIPPED_LOW = Curve("clip/low", "ratio too low")  # shares of the action tokens
CLIPPED_HIGH = Curve("clip/high", "ratio too high")
NEAR_ZERO = Curve("advantage/near_zero", "within ±0.02")
MISMATCH = Curve("mismatch/max", "largest |Δ log p|")
STALENESS = Curve("staleness/mean", "policy versions")
SPEED = Curve("time/tokens_per_s", "tokens a second")
TRACKED_VALUE = Curve("tracker/value", "tracked value")


def sampling_weight(value: float, epsilon: float = 0.05) -> float:
    """How often a prompt of tracked value v is drawn, unnormalised: √(v(1 − v)) + ε (SPO, arXiv 2509.13232, Eq. 11).

    Most where the outcome is least certain. value: in [0, 1].
    """
    return math.sqrt(value * (1 - value)) + epsilon
