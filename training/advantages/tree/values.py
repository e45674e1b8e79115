"""Tree values: a stretch of tokens is worth what it changed, A = V(node) − V(parent).

V(node) is the mean over the leaves below a node of what the estimator inside gave them: the Monte-Carlo value of the
state at its end, as Segment Policy Optimization (arXiv 2505.23564) and TreePO (2508.17445) take it. What all leaves
share with their parent gets no share of their outcome. The numbers telescope: along a leaf they add up to its own
advantage, minus that of the root.

root: what the first stretch is compared with. "baseline": 0, that is what the estimator inside took off (SPO's frozen
value, which no leaf of this tree has a part in); "tree": the mean over the whole tree, as in the papers, which contains
the leaf itself, and leaves a tree of one trunk without a word about its first turn.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from solostream.training.advantages.base import Advantage, Advantages, Trees
from solostream.training.advantages.tree.nodes import mean_below, nodes, spread_over, trees, worth
from solostream.training.batch import Batch


class TreeValues:
    """A stage. Raises UserError for trajectories that grew on no tree."""

    trees: Trees = "required"

    def __init__(self, inner: Advantage, *, root: Literal["baseline", "tree"] = "baseline") -> None:
        self.inner, self.root = inner, root

    def __call__(self, batch: Batch) -> Advantages:
        """V(node) − V(parent) on the tokens of each node; 0 for what the learner's filters take out."""
        before = self.inner(batch)
        leaf = worth(before)
        values = [np.zeros_like(one) for one in before.values]
        for members in trees(batch):
            whole = sum(leaf[i] for i in members) / len(members) if self.root == "tree" else 0.0
            for i in members:
                parts, parent = [], whole
                for node in nodes(batch, members, i):
                    here = mean_below(leaf, node)
                    parts.append((node, here - parent))
                    parent = here
                values[i] = spread_over(batch[i], parts)
        return Advantages(values, before.metrics)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
