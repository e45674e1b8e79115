"""The learning rate of each method, by successive halving on seeds that are used for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

Score = Callable[[float, int, float], float]  # learning rate, seed, share of the budget -> higher is better


def best_rate(score: Score, rates: Sequence[float], seeds: Sequence[int]) -> float:
    """All rates on a third of the budget, the better half on all of it; ties go to the smaller rate.

    One alone, given or kept, needs no runs.
    """
    left = list(rates)
    for share, kept in ((1 / 3, len(left) // 2), (1.0, 1)):
        if len(left) > 1:
            left.sort(key=lambda rate: (-fmean(score(rate, seed, share) for seed in seeds), rate))
            left = left[: max(kept, 1)]
    return left[0]
