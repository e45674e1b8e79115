"""Truncated importance sampling: a token weighs min(π_learner/π_sampler, C) (fengyao.notion.site/off-policy-rl, 2025).

With a two-sided mask as well, what the mask leaves is truncated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solostream.training.config.learner import LearnerConfig


def truncation(ratio: Tensor, inside: Tensor, config: LearnerConfig) -> tuple[Tensor, Tensor]:
    """(weight [n], how many tokens the cap cut) from π_learner/π_sampler [n]; where `inside` [n] is 0 it stays 0."""
    cap = config.tis_cap
    # What a mask took out stays out, and is not counted again as cut.
    stays = inside > 0  # bool [n]
    weight = torch.where(stays, ratio.clamp(max=cap), inside)  # [n]
    cut = (ratio > cap) & stays  # bool [n]
    return weight, cut.sum()
