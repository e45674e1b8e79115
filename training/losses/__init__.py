"""Policy losses: pure functions from the action tokens of a micro-batch to one loss a token.

To add one: a file with the function, and a line in LOSSES (and its name in the configuration's `LossName`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from solostream.training.config.learner import LearnerConfig, LossName
from solostream.training.losses.cispo import cispo
from solostream.training.losses.clip_cov import clip_cov, pick_between
from solostream.training.losses.gspo import gspo
from solostream.training.losses.kl_cov import kl_cov, pick_largest
from solostream.training.losses.ppo_clip import ppo_clip
from solostream.training.losses.tokens import Tokens

# (tokens, config) -> (loss of each token [n], metrics as sums over tokens)
Loss = Callable[[Tokens, LearnerConfig], tuple[Tensor, dict[str, Tensor]]]
# (covariance of each token of the optimizer batch, config, generator) -> which tokens the loss treats apart
TokenSelector = Callable[[np.ndarray, LearnerConfig, np.random.Generator], np.ndarray]

LOSSES: dict[LossName, Loss] = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "gspo": gspo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
TOKEN_SELECTORS: dict[LossName, TokenSelector] = {"clip_cov": pick_between, "kl_cov": pick_largest}
