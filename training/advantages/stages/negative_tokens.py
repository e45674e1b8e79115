"""Negative token filtering (arXiv 2606.17250): of a wrong trajectory only the least likely tokens are pushed down.

Per trajectory with A < 0 the `share` of its action tokens (at least one) of the smallest probability under the sampler
keep their advantage, the others get 0: most tokens of a wrong answer are ones that right answers have, too, and are
falsely punished. A group prevents that by comparison; a single stream by this.
The paper normalises positives and negatives apart; here the estimator inside decides (`spo`, `reinforce_pp`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.batch import Batch


class NegativeTokens:
    """share: of the tokens of a negative trajectory, that are pushed down."""

    def __init__(self, inner: Advantage, share: Annotated[float, Field(gt=0, le=1)] = 0.1) -> None:
        self.inner, self.share = inner, share

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, of negative ones only those of the least likely tokens."""
        before = self.inner(batch)
        values = [self._least_likely(a, t.logprobs[t.action_mask]) for a, t in zip(before.values, batch, strict=True)]
        return Advantages(values, before.metrics)

    def _least_likely(self, advantage: np.ndarray, logprob: np.ndarray) -> np.ndarray:
        """[action tokens], [action tokens] -> [action tokens]; equal probabilities: the earlier token."""
        negative = np.flatnonzero(advantage < 0)
        count = math.ceil(self.share * len(negative))
        chosen = negative[np.argsort(logprob[negative], kind="stable")[:count]]
        kept = np.where(advantage < 0, 0.0, advantage)
        kept[chosen] = advantage[chosen]
        return kept

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
