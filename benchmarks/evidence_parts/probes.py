"""What a baseline can be worth at best: the table policy's exact success rates in the place of a tracked value.

A method's tracker may lag, so its ablations do not say whether a better value would help. Here there is none: A is
r − p with the exact p of each task at the moment of sampling, and what else GRPO does to a batch is added piece by
piece. Prompts are uniform; rates and seeds are used for nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean

import numpy as np

from solostream.training.advantages.base import Advantages

from .cells import Cells
from .statistics import area, interval
from .table import Episodes
from .table_run import Judge, play

RATES, SEEDS, BUDGET = (0.3, 0.5, 1.0), range(200, 208), 2560


@dataclass(frozen=True, slots=True)
class Probe:
    """`method` says how prompts are drawn; `judge`, where there is one, what the episodes are worth."""

    title: str
    method: str
    judge: Judge | None = None


def exact(episodes: Episodes, rate: np.ndarray) -> Advantages:
    """A = r − p on all tokens."""
    return _constant(episodes, episodes.reward - rate)


def informative(episodes: Episodes, rate: np.ndarray) -> Advantages:
    """A = r − p, and 0 for the answers to a prompt that are all right or all wrong."""
    advantage = episodes.reward - rate
    for task in set(episodes.task):
        members = episodes.task == task
        if len(set(episodes.reward[members])) == 1:
            advantage[members] = 0.0
    return _constant(episodes, advantage)


def decision(episodes: Episodes, rate: np.ndarray) -> Advantages:
    """A = r − p; of a wrong answer only the token that chose the way is pushed down."""
    found = exact(episodes, rate)
    for values in found.values:
        values[1:] = np.maximum(values[1:], 0)
    return found


def _constant(episodes: Episodes, advantage: np.ndarray) -> Advantages:
    lengths = (episodes.row >= 0).sum(1)
    return Advantages([np.full(n, a) for n, a in zip(lengths, advantage, strict=True)], {})


PROBES = {
    "grpo": Probe("GRPO, G = 8", "grpo"),
    "rloo": Probe("RLOO, G = 8", "rloo"),
    "none": Probe("none (A = r)", "none"),
    "batch": Probe("batch mean", "batch"),
    "exact": Probe("r − p, exact p", "batch", exact),
    "exact_groups": Probe("r − p, exact p, prompts in groups of 8", "rloo", exact),
    "exact_informative": Probe("the same, groups all alike left out", "rloo", informative),
    "decision": Probe("r − p, negative only where the way is chosen", "batch", decision),
}


def areas(cells: Cells, population: str, name: str, rate: float) -> list[float]:
    """Of sampled accuracy, one a seed."""
    return [_area(cells, population, name, rate, seed) for seed in SEEDS]


def _area(cells: Cells, population: str, name: str, rate: float, seed: int) -> float:
    probe = PROBES[name]
    run = partial(play, population, probe.method, rate, seed, BUDGET, probe.judge)
    curve = cells.get(("probe", population, name, rate, seed, BUDGET), lambda: asdict(run()))
    return area(list(zip(curve["episodes"], curve["sampled"], strict=True)), BUDGET)


def table(cells: Cells, population: str) -> list[str]:
    """Each probe at the rate at which it is best on these very seeds, and its distance from GRPO's."""
    best = {}
    for name in PROBES:
        rates = {rate: areas(cells, population, name, rate) for rate in RATES}
        _, rate = max((fmean(found), rate) for rate, found in rates.items())
        best[name] = rate, rates[rate]
    lines = ["| | lr | area, sampled | least | − GRPO |", "|---|---|---|---|---|"]
    for name, (rate, found) in best.items():
        mean, half = interval(found)
        difference, wide = interval([a - b for a, b in zip(found, best["grpo"][1], strict=True)])
        versus = "" if name == "grpo" else f"{difference:+.3f} ± {wide:.3f}"
        lines.append(f"| {PROBES[name].title} | {rate:g} | {mean:.3f} ± {half:.3f} | {min(found):.2f} | {versus} |")
    return lines
