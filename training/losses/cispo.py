"""CISPO (arXiv 2506.13585, Eq. 4): the importance ratio is clipped and detached, so every token keeps its gradient.

    L = −sg(clip(ρ, 1 − ε_low, 1 + ε_high))·A·log π

The paper sets no lower bound: clip_low = 1.
"""

from __future__ import annotations

from torch import Tensor

from training.learner_config import LearnerConfig
from training.losses.tokens import Tokens, clip_counts


def cispo(tokens: Tokens, config: LearnerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    ratio, a = tokens.log_ratio.detach().exp(), tokens.advantage
    weight = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    return -weight * a * tokens.logprob, clip_counts(ratio, a, config.clip_low, config.clip_high)
