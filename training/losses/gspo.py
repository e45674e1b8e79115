"""GSPO (arXiv 2507.18071, Eq. 5-7): one ratio a sequence, the geometric mean of its tokens' ratios.

    s = exp(mean_t log ρ_t),  L = −min(sA, clip(s, 1 − ε_low, 1 + ε_high)·A)

Every token of the sequence carries L, so aggregation = "seq_mean_token_mean" is the paper's objective. Its bounds are
far tighter than PPO's, for a mean over many tokens moves far less than one of them (Sec. 5.1: 3e-4 and 4e-4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solostream.training.losses.tokens import Rate, Tokens, clip_counts


@dataclass(frozen=True, slots=True)
class GSPO:
    """clip_low, clip_high: how far the ratio of a sequence may leave 1."""

    clip_low: Rate = 3e-4
    clip_high: Rate = 4e-4

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO-clip [n] with the ratio of the whole sequence, its geometric mean a token; sums of `clip/*`."""
        ratio, a = tokens.sequence_mean(tokens.log_ratio).exp(), tokens.advantage  # [n], [n]
        loss = -torch.minimum(ratio * a, ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * a)
        return loss, clip_counts(ratio.detach(), a, self.clip_low, self.clip_high)
