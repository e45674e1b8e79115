"""Shrinkage baseline (arXiv 2511.03710): the mean of the other answers to a prompt, pulled to that of other prompts.

    A_ij = r_ij − [(1 − λ)·mean of the others in group i + λ·mean of the other groups]

Left out at both levels (the answer from its group, the group from the batch), so the baseline does not depend on the
answer. λ = σ²/(σ² + τ²) weighs the noise of a mean of G − 1 answers, σ² = mean within-group variance/(G − 1), against
the spread τ² of the prompts, the variance of the group means without their own noise; from the other groups alone.
λ → 1 (one mean for the batch) where groups are small or alike, λ → 0 (RLOO) where they are large or unlike.
The James-Stein coefficient in its empirical-Bayes form; the paper's abstract does not give its own in full.
"""

from __future__ import annotations

import math
from statistics import fmean, variance
from typing import Any

from solostream.training.advantages.base import Advantages, Grouping, Trees, per_token
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import spread
from solostream.training.batch import Batch, kept_of


class Shrinkage:
    """Raises UserError for trajectories without a group. A group of one is compared with the others only."""

    groups: Grouping = "required"
    trees: Trees = "refused"

    def __call__(self, batch: Batch) -> Advantages:
        """r less the shrunken mean of the others. Raises UserError without groups."""
        r, values = [t.reward for t in batch], [0.0] * len(batch)
        sets = list(groups(batch).values())
        rewards = [[r[i] for i in members] for members in sets]
        used = []
        for g, members in enumerate(sets):
            others = rewards[:g] + rewards[g + 1 :]
            outside = fmean(map(fmean, others)) if others else 0.0
            total, n = math.fsum(rewards[g]), len(members)
            weight = _shrinkage(others, n - 1) if n > 1 else 1.0
            for i in members:
                inside = (total - r[i]) / (n - 1) if n > 1 else 0.0
                values[i] = r[i] - ((1 - weight) * inside + weight * outside)
            used.append(weight)
        metrics = {**spread(values, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        if used:
            metrics["advantage/shrinkage"] = fmean(used)
        return Advantages(per_token(values, batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


def _shrinkage(others: list[list[float]], n: int) -> float:
    """λ for a mean of n answers; 0 with fewer than two other groups of two, for then nothing is known."""
    known = [rewards for rewards in others if len(rewards) > 1]
    if len(known) < 2:
        return 0.0
    within = fmean(map(variance, known))
    noise = fmean(variance(rewards) / len(rewards) for rewards in known)
    between = max(variance(map(fmean, known)) - noise, 0.0)
    return within / n / (within / n + between) if within + between > 0 else 0.0
