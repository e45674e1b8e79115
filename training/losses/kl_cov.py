"""KL-Cov (arXiv 2505.22617, Eq. 13): the tokens of the largest covariance are held near π_old by a KL penalty.

    L = −ρA + [picked]·β·|log ρ|        (the authors' code; share 2e-4, β = 1)

At ρ = 1 the penalty has no gradient: with one optimizer step a batch, of a sampler that is the learner, the loss is
plain policy gradient, and a configuration of that kind is refused. Departure: log π of the covariance is the sampler's
(see clip_cov).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solostream.training.losses.tokens import Rate, Share, Tokens


@dataclass(frozen=True, slots=True)
class KLCov:
    """share: of all tokens, that are held. kl: β, the weight of the penalty."""

    share: Share = 2e-4
    kl: Rate = 1.0

    def select(self, cov: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[n] -> bool [n]: the `share` of the tokens with the largest covariance."""
        picked = np.zeros(len(cov), bool)
        picked[np.argsort(-cov, kind="stable")[: max(int(self.share * len(cov)), 1)]] = True
        return picked

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """−ρA, and β·|d| on the picked tokens [n]; the sum of `clip/covariance`."""
        d = tokens.log_ratio
        penalty = torch.where(tokens.picked, self.kl * d.abs(), torch.zeros_like(d))
        return penalty - d.exp() * tokens.advantage, {"clip/covariance": tokens.picked.sum()}
