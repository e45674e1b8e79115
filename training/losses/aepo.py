"""AEPO's entropy-balanced clip (arXiv 2510.14545): what PPO clips from above keeps a gradient, of the bound's size.

    L = −min(ρA, clip(ρ, 1 − ε_low, (1 + ε_high)·ρ/sg(ρ))·A)

Beyond the upper bound the value is PPO's, and the gradient is (1 + ε_high)·A·∇log π instead of 0: tokens of high
entropy, which leave the bounds first, go on exploring. For A < 0 at most −c·A (dual clip; their code: c = 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solostream.training.losses.tokens import Rate, Tokens, check_dual_clip, clip_counts, dual_clipped


@dataclass(frozen=True, slots=True)
class AEPOClip:
    """clip_low, clip_high: how far the ratio may leave 1. dual_clip: bound on ratio x |A| for A < 0; 0: none."""

    clip_low: Rate = 0.2
    clip_high: Rate = 0.28
    dual_clip: Rate = 3.0

    def __post_init__(self) -> None:
        check_dual_clip(self.dual_clip)

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped loss of each token [n], with a gradient above the upper bound; sums of `clip/*`."""
        ratio, a = tokens.log_ratio.exp(), tokens.advantage  # [n], [n]
        at_bound = (1 + self.clip_high) * ratio / ratio.detach()
        inside = torch.where(ratio > 1 + self.clip_high, at_bound, ratio.clamp(min=1 - self.clip_low))
        loss = -torch.minimum(ratio * a, inside * a)
        metrics = clip_counts(ratio.detach(), a, self.clip_low, self.clip_high)
        loss, cut = dual_clipped(loss, a, self.dual_clip)
        return loss, {**metrics, **cut}
