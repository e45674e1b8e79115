"""Negative advantages weigh less: A ← s·A where A < 0.

The score of a wrong answer is loud (an accident is a token of probability .001, and its gradient is 4 to 57 times a
right one's in squared norm), and Adam turns what is rare and loud into full steps. s = 1 changes nothing, s = 0 is
positive-only. The sum of a centred batch is then no longer 0: right answers are made likelier in absolute terms.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.batch import Batch


class NegativeWeight:
    """weight: s."""

    def __init__(self, inner: Advantage, weight: Annotated[float, Field(ge=0, le=1)] = 0.25) -> None:
        self.inner, self.weight, self.in_parts = inner, weight, True

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, negative ones times the weight."""
        before = self.inner(batch)
        return Advantages([np.where(a < 0, self.weight * a, a) for a in before.values], before.metrics)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
