"""How far a baseline is believed: A = r − s·b, s = clip(Cov(r, b)/Var(b), 0, 1) over earlier batches.

The slope of the regression of rewards on baselines minimises the variance of what is left, so the centred advantage
r − (m + s·(b − mean b)) is, but for what s itself lacks, never noisier than the batch mean alone. s = 0 says that the
values explain nothing, s = 1 that they are right as they are (a tracker's rule; no more is believed). Only earlier
batches count, so that s does not depend on the answers that it is used for; before the first, s = 0.
The shrinkage of arXiv 2511.03710 in the form that a tracker has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

KEEP = 0.8  # of what earlier batches said, a batch


class FittedSlope:
    """s over the batches so far, moments taken under the measure that the batch is centred by."""

    def __init__(self) -> None:
        self._covariance = self._variance = 0.0

    @property
    def value(self) -> float:
        """s of the batches so far, within [0, 1]."""
        return min(max(self._covariance / self._variance, 0.0), 1.0) if self._variance > 0 else 0.0

    def update(self, rewards: Sequence[float], baselines: Sequence[float], weights: Sequence[float]) -> None:
        """One batch."""
        total = math.fsum(weights)
        if total <= 0:
            return

        def mean(numbers: Sequence[float]) -> float:
            return math.fsum(w * x for w, x in zip(weights, numbers, strict=True)) / total

        r, b = mean(rewards), mean(baselines)
        covariance = mean([(x - r) * (y - b) for x, y in zip(rewards, baselines, strict=True)])
        self._covariance = KEEP * self._covariance + covariance
        self._variance = KEEP * self._variance + mean([(y - b) ** 2 for y in baselines])

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"moments": [self._covariance, self._variance]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._covariance, self._variance = state["moments"]
