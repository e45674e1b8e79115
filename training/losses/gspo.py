"""GSPO (arXiv 2507.18071, Eq. 5-7): one ratio a sequence, the geometric mean of its tokens' ratios.

    s = exp(mean_t log ρ_t),  L = −min(sA, clip(s, 1 − ε_low, 1 + ε_high)·A)

Every token of the sequence carries L, so aggregation = "seq_mean_token_mean" is the paper's objective. Its bounds are
far tighter than PPO's: clip_low = 3e-4, clip_high = 4e-4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solostream.training.config.learner import LearnerConfig
from solostream.training.losses.tokens import Tokens, clip_counts


def gspo(tokens: Tokens, config: LearnerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    ratio, a = tokens.sequence_mean(tokens.log_ratio).exp(), tokens.advantage
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * a)
    return loss, clip_counts(ratio.detach(), a, config.clip_low, config.clip_high)
