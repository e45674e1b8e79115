"""Segment Policy Optimization (arXiv 2505.23564): segment advantages by Monte Carlo, on the tokens that decided.

    A_segment = V(its end) − V(its beginning)        of a segment's tokens only those with π_t < ρ are trained

V is estimated from the branches at the segment's borders (`tree.values`; the rollout `segments` grows such a tree).
The probability mask: a token that was nearly certain decided nothing, and would only blur the credit (ρ = 0.9).
Departures: segments end with turns; masked tokens stay in the learner's denominator, which is fixed, where the paper
divides by those that are left; π is the sampler's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages, Trees
from solostream.training.advantages.tree.values import TreeValues
from solostream.training.batch import Batch


class SegmentPO:
    """A stage. below: ρ; 1 keeps every token that was not certain. root: as of `tree_values`. Raises UserError."""

    trees: Trees = "required"

    def __init__(
        self,
        inner: Advantage,
        *,
        below: Annotated[float, Field(gt=0, le=1)] = 0.9,
        root: Literal["baseline", "tree"] = "baseline",
    ) -> None:
        self.inner, self.below = TreeValues(inner, root=root), below

    def __call__(self, batch: Batch) -> Advantages:
        """Tree values, 0 where the sampler was nearly certain."""
        before = self.inner(batch)
        values, kept, total = [], 0, 0
        for a, t in zip(before.values, batch, strict=True):
            decided = np.exp(t.logprobs[t.action_mask].astype(np.float64)) < self.below
            values.append(np.where(decided, a, 0.0))
            kept, total = kept + int(decided.sum()), total + len(decided)
        return Advantages(values, {**before.metrics, "tree/decided": kept / max(total, 1)})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
