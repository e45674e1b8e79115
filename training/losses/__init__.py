"""Policy losses: pure functions from the action tokens of a micro-batch to one loss a token.

A loss is a component (`solostream.registry`): `learner.loss` names it, `[loss.NAME]` has its options. To add one: a
file with a class, a frozen dataclass of its options that can be called, and a line in `registry.BUILT_IN`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from solostream.training.losses.tokens import Tokens


@runtime_checkable
class Loss(Protocol):
    """A policy loss, token by token; `solostream check loss` tries one."""

    def __call__(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each token [n], and metrics "group/name" as sums over the tokens."""
        ...


@runtime_checkable
class SelectsTokens(Protocol):
    """A loss that treats some tokens apart; `Tokens.picked` brings them."""

    def select(self, cov: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Covariance of each token of the whole optimizer batch [n] -> bool [n]."""
        ...
