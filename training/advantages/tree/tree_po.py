"""TreePO's advantage (arXiv 2508.17445, Sec. 2.3): a leaf against each of the subgroups that it stands in.

    A_i = mean over the ancestors j of (A_i − V(j)),        V(j) = mean over the leaves below j

The ancestors are the root and every node along the leaf below which there are at least two leaves: the whole group, and
ever nearer relatives. A node that is the leaf's own would compare it with itself.
Departures: the paper divides by the deviation of the group; here the estimator inside sets the scale. The paper's
rejection of degenerate subgroups comes by itself: leaves that are alike add 0.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np

from solostream.training.advantages.base import Advantage, Advantages, Trees
from solostream.training.advantages.tree.nodes import mean_below, nodes, trees, worth
from solostream.training.batch import Batch


class TreePO:
    """A stage. Raises UserError for trajectories that grew on no tree."""

    trees: Trees = "required"

    def __init__(self, inner: Advantage) -> None:
        self.inner = inner

    def __call__(self, batch: Batch) -> Advantages:
        """The same number for all tokens of a leaf; 0 for what the learner's filters take out."""
        before = self.inner(batch)
        leaf = worth(before)
        values = [np.zeros_like(one) for one in before.values]
        for members in trees(batch):
            whole = fmean(leaf[i] for i in members)
            for i in members:
                shared = [mean_below(leaf, node) for node in nodes(batch, members, i) if len(node.below) > 1]
                values[i] = np.full_like(before.values[i], fmean(leaf[i] - v for v in (whole, *shared)))
        return Advantages(values, before.metrics)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
