"""CISPO (arXiv 2506.13585, Eq. 4): the importance ratio is clipped and detached, so every token keeps its gradient.

    L = −sg(clip(ρ, 1 − ε_low, 1 + ε_high))·A·log π

The paper sets no lower bound: clip_low = 1.
"""

from __future__ import annotations

from torch import Tensor

from solostream.training.config.learner import LearnerConfig
from solostream.training.losses.tokens import Tokens


def cispo(tokens: Tokens, config: LearnerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    ratio, a = tokens.log_ratio.detach().exp(), tokens.advantage
    weight = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    metrics = {"clip/low": (ratio < weight).sum(), "clip/high": (ratio > weight).sum()}
    return -weight * a * tokens.logprob, metrics
