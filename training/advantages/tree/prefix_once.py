"""A shared beginning is trained on once: the leaf that sampled it carries the sum of its leaves' advantages.

    A_t ← Σ over the leaves below t of A_leaf,t    in the leaf that sampled t;    A_t ← 0    in the others

Instead of each leaf training its own copy. Denominators stay those of all copies, so the gradient is the same in sum
(while the ratio is 1: one token then has one ratio to clip instead of n, and one advantage, with one sign). That holds
for token_mean, whose tokens all weigh alike; another aggregation is refused with the configuration.
The learner still computes every copy: what follows attends to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from solostream.training.advantages.base import Advantage, Advantages, Trees
from solostream.training.advantages.tree.nodes import nodes, trees
from solostream.training.batch import Batch


class PrefixOnce:
    """A stage, the outermost. Raises UserError for trajectories that grew on no tree."""

    trees: Trees = "required"

    def __init__(self, inner: Advantage) -> None:
        self.inner = inner

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, those of shared tokens added up where they were sampled."""
        before = self.inner(batch)
        columns = []
        for t, a in zip(batch, before.values, strict=True):
            column = np.zeros(len(t), np.float64)
            column[t.action_mask] = a
            columns.append(column)
        after = [column.copy() for column in columns]
        for members in trees(batch):
            for i in members:
                for node in nodes(batch, members, i):
                    mine = i == node.below[0]  # the first of those that are left: its sampler, unless that was filtered
                    span = slice(node.start, node.end)
                    after[i][span] = sum(columns[k][span] for k in node.below) if mine else 0.0
        values = [column[t.action_mask] for t, column in zip(batch, after, strict=True)]
        return Advantages(values, before.metrics)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
