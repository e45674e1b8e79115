"""DPPO (arXiv 2602.04879), the binary total-variation mask: a trust region in probability, not in the ratio.

    L = −sg(min(ρ, C))·A·log π·M,   M = 0 where A > 0 and π − π_old > δ_high, or A ≤ 0 and π − π_old < −δ_low, else 1

A ratio clips a rare token long before it has moved any probability (10⁻⁴ → 2·10⁻⁴) and lets a frequent one pass (.5 →
.6); δ bounds what either moves. prime-rl's default loss is of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solostream.training.losses.tokens import Rate, Tokens


@dataclass(frozen=True, slots=True)
class DPPO:
    """delta_low, delta_high: how much probability a token may have lost or gained. ratio_cap: C, on the weight."""

    delta_low: Rate = 0.2
    delta_high: Rate = 0.2
    ratio_cap: Rate = 20.0

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """The capped, detached ratio times −A·log π where the trust region holds [n]; sums of `clip/*`."""
        a, logprob = tokens.advantage, tokens.logprob  # [n], [n]
        moved = logprob.detach().exp() - tokens.old.exp()
        far_up, far_down = (a > 0) & (moved > self.delta_high), (a <= 0) & (moved < -self.delta_low)
        weight = tokens.log_ratio.detach().exp().clamp(max=self.ratio_cap)
        loss = -torch.where(far_up | far_down, torch.zeros_like(weight), weight) * a * logprob
        return loss, {"clip/low": far_down.sum(), "clip/high": far_up.sum()}
