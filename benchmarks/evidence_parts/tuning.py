"""The learning rate of each method, by successive halving on seeds that are used for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

Score = Callable[[float, int, float], float]  # learning rate, seed, share of the budget -> higher is better


def best_rate(score: Score, rates: Sequence[float], seeds: Sequence[int]) -> float:
    """All rates on a third of the budget, the better half on all of it; ties go to the smaller rate.

    One alone needs no runs.
    """
    if len(rates) == 1:
        return rates[0]
    early = sorted(rates, key=lambda rate: (-fmean(score(rate, seed, 1 / 3) for seed in seeds), rate))
    kept = sorted(early[: max(len(rates) // 2, 1)])
    return max(kept, key=lambda rate: (fmean(score(rate, seed, 1.0) for seed in seeds), -rate))
