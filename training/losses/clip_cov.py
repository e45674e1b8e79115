"""Clip-Cov (arXiv 2505.22617, Eq. 12): PPO-clip, and a few tokens of high covariance lose their gradient.

cov = (log π − mean log π)(A − mean A) over the action tokens of the optimizer batch: the tokens that drive the entropy
down. Of those between the bounds, `share` of all tokens are drawn at random. Departures: log π is the sampler's, so
that the choice does not depend on how the batch is cut into micro-batches; a token that PPO clips anyway may be drawn
(the authors leave those out of the draw), which takes nothing more from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solostream.errors import UserError
from solostream.training.losses.ppo_clip import PPOClip
from solostream.training.losses.tokens import Rate, Share, Tokens


def covariance(logprob: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """[n], [n] -> [n]: each token's contribution to the covariance."""
    product: np.ndarray = (logprob - logprob.mean()) * (advantage - advantage.mean())
    return product


@dataclass(frozen=True, slots=True)
class ClipCov:
    """share: of all tokens, that lose their gradient. bounds: between which their covariance lies."""

    clip_low: Rate = 0.2
    clip_high: Rate = 0.28
    dual_clip: Rate = 10.0
    share: Share = 2e-4
    bounds: tuple[float, float] = (1.0, 5.0)

    def __post_init__(self) -> None:
        self._ppo()  # raises for what PPO-clip refuses
        if self.bounds[0] >= self.bounds[1]:
            raise UserError(f"bounds must be [low, high] with low < high, not {list(self.bounds)}")

    def select(self, cov: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[n] -> bool [n]: a random `share` of the tokens, out of those whose covariance lies between the bounds."""
        low, high = self.bounds
        candidates = np.flatnonzero((cov > low) & (cov < high))
        count = min(max(int(self.share * len(cov)), 1), len(candidates))
        picked = np.zeros(len(cov), bool)
        picked[rng.choice(candidates, count, replace=False)] = True
        return picked

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO-clip [n], without the gradient of the picked tokens; sums of `clip/*`."""
        loss, metrics = self._ppo()(tokens)
        return torch.where(tokens.picked, loss.detach(), loss), {**metrics, "clip/covariance": tokens.picked.sum()}

    def _ppo(self) -> PPOClip:
        return PPOClip(self.clip_low, self.clip_high, self.dual_clip)
