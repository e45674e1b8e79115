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

CALIBRATION_ERROR = Curve("tracker/calibration_error", "expected calibration error")
BRIER = Curve("tracker/brier", "mean squared error")


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture of the viewer's run page. tab: where; unit: of its y axis, which ends at 1 for a share.

    A chart is shown when a run wrote one of its curves.
    """

    tab: Literal["overview", "behaviours", "tracker", "health", "system"]
    title: str
    unit: str
    curves: tuple[Curve, ...]
    share: bool = False


CHARTS = (
    Chart("overview", "Accuracy", "share of problems", (ACCURACY, ACCURACY_GREEDY, TRAIN_ACCURACY), share=True),
    Chart("overview", "First call", "token of the response", (FIRST_CALL,)),
    Chart("overview", "Reward", "mean reward", (REWARD,), share=True),
    Chart("overview", "Entropy", "nats a token", (ENTROPY,)),
    Chart("behaviours", "First call", "token of the response", (FIRST_CALL,)),
    Chart("behaviours", "Trajectories with code", "share of trajectories", (Curve("code/ratio", "with a call"),), True),
    Chart("behaviours", "Calls that pass", "share of calls", (Curve("code/pass_ratio", "passed"),), share=True),
    Chart("behaviours", "Code rounds", "calls a trajectory", (Curve("code/rounds", "calls"),)),
    Chart("behaviours", "Code lines", "lines a call", (Curve("code/lines", "lines"),)),
    Chart("behaviours", "Response length", "tokens", (Curve("length/response_mean", "mean"),)),
    Chart("behaviours", "Turns", "turns a trajectory", (Curve("length/turns", "turns of the policy"),)),
    Chart(
        "behaviours",
        "Endings",
        "share of trajectories",
        tuple(
            Curve(f"ending/{name}", name.replace("_", " "))
            for name in ("answered", "void", "turn_limit", "token_limit", "time_limit")
        ),
        share=True,
    ),
    Chart("tracker", "What the tracker expects, and what came", "success rate", (TRACKED_VALUE, REWARD), share=True),
    Chart("tracker", "Error of the tracker", "squared, absolute", (BRIER, CALIBRATION_ERROR)),
    Chart("tracker", "Effective samples of a value", "trajectories", (Curve("tracker/n_eff", "mean"),)),
    Chart("tracker", "Advantages near zero", "share of trajectories", (NEAR_ZERO,), share=True),
    Chart(
        "health",
        "Idle",
        "share of the step",
        (Curve("idle/learner", "learner waits"), Curve("idle/rollout", "rollouts wait")),
        share=True,
    ),
    Chart("health", "Staleness", "policy versions", (STALENESS, Curve("staleness/max", "largest"))),
    Chart("health", "Sampler against learner", "nats", (MISMATCH, Curve("mismatch/on_policy_max", "of one policy"))),
    Chart(
        "health", "Effective sample size", "share of tokens", (Curve("mismatch/ess", "of importance weights"),), True
    ),
    Chart("health", "Clipped tokens", "share of action tokens", (CLIPPED_LOW, CLIPPED_HIGH)),
    Chart("health", "KL from the sampling policy", "nats a token", (Curve("kl/k3", "k3 estimate"),)),
    Chart("health", "Gradient norm", "norm", (Curve("learner/grad_norm", "before clipping"),)),
    Chart(
        "health",
        "Filtered and failed",
        "trajectories a step",
        tuple(
            Curve(f"filter/{name}", name.replace("_", " "))
            for name in ("infra_failures", "infra_dropped", "reward_failures", "engine_failures", "stale")
        ),
    ),
    Chart("health", "Loss", "loss", (LOSS,)),
    Chart("health", "Cold start", "nats a token", (COLD_START,)),
    Chart("system", "Speed", "tokens a second", (SPEED,)),
    Chart(
        "system",
        "Time of a step",
        "seconds",
        (
            Curve("time/step_s", "whole"),
            Curve("time/learn_s", "learning"),
            Curve("time/sync_s", "weights to the sampler"),
        ),
    ),
    Chart("system", "Learning rate", "rate", (Curve("learner/lr", "learner"),)),
)
HELD_OUT_PROBLEMS = "held_out.jsonl"  # beside metrics.jsonl: a line a measurement, what each problem earned

# Rows of the held-out table: key of an `eval` row -> (label, unit)
HELD_OUT = {
    "accuracy": ("accuracy, sampled", "%"),
    "accuracy_greedy": ("accuracy, greedy", "%"),
    "code_ratio": ("trajectories with code", "%"),
    "first_call_token": ("first call", "token"),
    "code_pass_ratio": ("calls that pass", "%"),
    "code_rounds": ("calls a trajectory", ""),
}

# What a number is counted in, by how its name begins (the first that fits), where no chart above says it.
_UNITS = {
    "accuracy": "share of problems", "code_ratio": "share of trajectories", "code_pass": "share of calls",
    "code_rounds": "calls a trajectory", "first_call": "token of the response", "code/void": "share of trajectories",
    "held_out_loss": "nats a token", "held_out_accuracy": "share of problems", "loss": "nats a token",
    "length/": "tokens", "ending/": "share of trajectories", "staleness/mixed": "share of trajectories",
    "staleness/": "policy versions", "dropped/": "share of trajectories", "filter/": "trajectories a step",
    "clip/": "share of action tokens", "kl/": "nats a token", "mismatch/": "nats", "advantage/": "advantage",
    "reward/": "reward", "tracker/": "value", "aspo/": "share of trajectories", "idle/": "share of the step",
    "time/": "seconds", "learner/tokens_per_s": "tokens a second", "tokens_per_s": "tokens a second",
    "learner/tokens": "tokens", "learner/drift": "nats a token", "learner/lr": "rate", "lr": "rate",
    "grad_norm": "norm", "learner/optimiser_steps": "steps",
}  # fmt: skip


def unit(key: str) -> str:
    """What the number of this name is counted in, for an axis; "value" where nobody said it."""
    said = next((chart.unit for chart in CHARTS for curve in chart.curves if curve.key == key), None)
    return said or next((unit for start, unit in _UNITS.items() if key.startswith(start)), "value")


def sampling_weight(value: float, epsilon: float = 0.05, gamma: float = 0.0, evidence: float = 1.0) -> float:
    """How often a prompt of tracked value v is drawn, unnormalised: √(v(1 − v)) + ε (SPO, arXiv 2509.13232, Eq. 11).

    Most where the outcome is least certain. value: in [0, 1]. gamma: of the paper's conference version, in which the
    root is divided by N^γ, N = max(evidence, 1) the effective number of observations.
    """
    return math.sqrt(value * (1 - value)) / math.pow(max(evidence, 1.0), gamma) + epsilon
