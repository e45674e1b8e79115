"""CISPO (arXiv 2506.13585, Eq. 4): the importance ratio is clipped and detached, so every token keeps its gradient.

    L = −sg(clip(ρ, 1 − ε_low, 1 + ε_high))·A·log π

The paper sets no lower bound: clip_low = 1. Of its ε_high we know only that it was tuned. 0.28 is PPO-clip's, as in
Trinity-RFT: at the defaults the two losses differ in what they do beyond the bound, not in where it lies. ScaleRL
(arXiv 2510.13786) lets weights rise to 5, which is clip_high = 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solostream.training.losses.tokens import Rate, Tokens


@dataclass(frozen=True, slots=True)
class CISPO:
    """clip_low, clip_high: how far the weight of a token may leave 1."""

    clip_low: Rate = 1.0
    clip_high: Rate = 0.28

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """−sg(clipped ρ)·A·log π of each token [n], and sums of `clip/low` and `clip/high`."""
        ratio, a = tokens.log_ratio.detach().exp(), tokens.advantage  # [n], [n]
        weight = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        metrics = {"clip/low": (ratio < weight).sum(), "clip/high": (ratio > weight).sum()}
        return -weight * a * tokens.logprob, metrics
