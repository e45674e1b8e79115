"""A two-sided mask on the sampler's ratio: a token weighs ρ = π_learner/π_sampler inside [low, high], else nothing.

IcePop (Ring-1T, arXiv 2510.18855, [0.5, 5]); the same mask is prime-rl's, SAO's (arXiv 2607.07508: [0.7, 6] for maths,
[0.2, 4] for code) and the token mask of TRL. Where one optimizer step follows each batch, the clip of the loss never
acts under corrections by weights; this is then the trust region against a stale or differently rounded sampler.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sampler_mask(ratio: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """(weight [n], how many tokens were masked) from ρ [n]."""
    low, high = bounds
    inside = (ratio >= low) & (ratio <= high)  # bool [n]
    # Inside, the ratio itself is the weight that makes the sampler's tokens count as the learner's.
    weight = torch.where(inside, ratio, torch.zeros_like(ratio))  # [n]
    masked = (~inside).sum()
    return weight, masked
