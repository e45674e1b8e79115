"""PPO-clip with separate bounds and dual clip.

L = −min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high)·A),  ρ = π/π_old        (arXiv 1707.06347; clip-higher arXiv 2503.14476)
for A < 0 at most −c·A                                              (dual clip, arXiv 1912.09729)
"""

from __future__ import annotations

import torch
from torch import Tensor

from solostream.training.config.learner import LearnerConfig
from solostream.training.losses.tokens import Tokens, clip_counts


def ppo_clip(tokens: Tokens, config: LearnerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    ratio, a = tokens.log_ratio.exp(), tokens.advantage
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * a)
    metrics = clip_counts(ratio.detach(), a, config.clip_low, config.clip_high)
    if config.dual_clip:
        bound = -config.dual_clip * a
        metrics["clip/dual"] = ((a < 0) & (loss.detach() > bound)).sum()
        loss = torch.where(a < 0, torch.minimum(loss, bound), loss)
    return loss, metrics
