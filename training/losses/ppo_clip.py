"""PPO-clip with separate bounds and dual clip.

L = −min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high)·A),  ρ = π/π_old        (arXiv 1707.06347; clip-higher arXiv 2503.14476)
for A < 0 at most −c·A                                              (dual clip, arXiv 1912.09729)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solostream.training.losses.tokens import Rate, Tokens, check_dual_clip, clip_counts, dual_clipped


@dataclass(frozen=True, slots=True)
class PPOClip:
    """clip_low, clip_high: how far the ratio may leave 1. dual_clip: bound on ratio x |A| for A < 0; 0: none.

    Raises UserError for a dual clip that would cut tokens of the policy itself.
    """

    clip_low: Rate = 0.2
    clip_high: Rate = 0.28
    dual_clip: Rate = 10.0

    def __post_init__(self) -> None:
        check_dual_clip(self.dual_clip)

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped loss of each token [n], bounded for A < 0 (dual clip); sums of `clip/*`."""
        ratio, a = tokens.log_ratio.exp(), tokens.advantage  # [n], [n]
        loss = -torch.minimum(ratio * a, ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * a)
        metrics = clip_counts(ratio.detach(), a, self.clip_low, self.clip_high)
        loss, cut = dual_clipped(loss, a, self.dual_clip)
        return loss, {**metrics, **cut}
