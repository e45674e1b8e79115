"""Policy losses: pure functions from the action tokens of a micro-batch to one loss a token.

To add one: a file with the function, and a line in LOSSES (and its name in the configuration's `LossName`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from training.learner_config import LearnerConfig, LossName
from training.losses.cispo import cispo
from training.losses.clip_cov import clip_cov, pick_between
from training.losses.gspo import gspo
from training.losses.kl_cov import kl_cov, pick_largest
from training.losses.ppo_clip import ppo_clip
from training.losses.tokens import Tokens

# (tokens, config) -> (loss of each token [n], metrics as sums over tokens)
Loss = Callable[[Tokens, LearnerConfig], tuple[Tensor, dict[str, Tensor]]]
# (covariance of each token of the optimiser batch, config, generator) -> which tokens the loss treats apart
Pick = Callable[[np.ndarray, LearnerConfig, np.random.Generator], np.ndarray]

LOSSES: dict[LossName, Loss] = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "gspo": gspo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
PICKS: dict[LossName, Pick] = {"clip_cov": pick_between, "kl_cov": pick_largest}
