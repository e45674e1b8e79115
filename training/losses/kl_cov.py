"""KL-Cov (arXiv 2505.22617, Eq. 13): the tokens of the largest covariance are held near π_old by a KL penalty.

    L = −ρA + [picked]·β·(e^d − 1 − d),  d = log ρ: k3 of KL(π_old ‖ π)

Departures: k3 in place of the authors' |d|, which has no gradient to speak of at d = 0 but a kink there; log π of the
covariance is the sampler's (see clip_cov).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from solostream.training.config.learner import LearnerConfig
from solostream.training.losses.tokens import Tokens


def pick_largest(cov: np.ndarray, config: LearnerConfig, rng: np.random.Generator) -> np.ndarray:
    picked = np.zeros(len(cov), bool)
    picked[np.argsort(-cov, kind="stable")[: max(int(config.cov_share * len(cov)), 1)]] = True
    return picked


def kl_cov(tokens: Tokens, config: LearnerConfig) -> tuple[Tensor, dict[str, Tensor]]:
    d = tokens.log_ratio
    penalty = tokens.picked * config.cov_kl * (d.exp() - 1 - d)
    return penalty - d.exp() * tokens.advantage, {"clip/covariance": tokens.picked.sum()}
