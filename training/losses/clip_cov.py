"""Clip-Cov (arXiv 2505.22617, Eq. 12): PPO-clip, and a few tokens of high covariance lose their gradient.

cov = (log π − mean log π)(A − mean A) over the action tokens of the optimizer batch: the tokens that drive the entropy
down. Of those between the bounds, `cov_share` of all tokens are drawn at random. Departure: log π is the sampler's, so
that the choice does not depend on how the batch is cut into micro-batches.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solostream.training.config.learner import LearnerConfig
from solostream.training.losses.ppo_clip import ppo_clip
from solostream.training.losses.tokens import Tokens


def covariance(logprob: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """[n], [n] -> [n]: each token's contribution to the covariance."""
    return (logprob - logprob.mean()) * (advantage - advantage.mean())


def pick_between(cov: np.ndarray, config: LearnerConfig, rng: np.random.Generator) -> np.ndarray:
    low, high = config.cov_bounds
    candidates = np.flatnonzero((cov > low) & (cov < high))
    count = min(max(int(config.cov_share * len(cov)), 1), len(candidates))
    picked = np.zeros(len(cov), bool)
    picked[rng.choice(candidates, count, replace=False)] = True
    return picked


def clip_cov(tokens: Tokens, config: LearnerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    loss, metrics = ppo_clip(tokens, config)
    return torch.where(tokens.picked, loss.detach(), loss), {**metrics, "clip/covariance": tokens.picked.sum()}
