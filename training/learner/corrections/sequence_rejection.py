"""Whole trajectories weigh nothing when their geometric-mean ratio π_learner/π_sampler leaves given bounds.

exp(mean_t log ρ_t), the "geometric" sequence rejection of verl's and SkyRL's rollout corrections.
"""

from __future__ import annotations

from torch import Tensor


def sequence_rejection(ratio: Tensor, bounds: tuple[float, float]) -> Tensor:
    """bool [n]: whether a token's trajectory stays; ratio [n]: the trajectory's mean, on each of its tokens."""
    # Both ways: a trajectory that has become improbable is as far from the policy as one that it now prefers.
    low, high = bounds
    return (ratio >= low) & (ratio <= high)
