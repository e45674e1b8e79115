"""ARPO's attribution (arXiv 2507.19849, Sec. 3.2): shared tokens get the mean of their leaves' advantages.

    hard: A_t = mean over the leaves below t of A_leaf        soft: A_t = A_leaf, in every leaf

In sum the gradient is the same while the ratio is 1, and the denominators count every leaf's tokens in both: n leaves
that each train a beginning with their own A add up to n times their mean. Away from ratio 1 the clip treats them apart.
The paper trains softly and finds it better; soft is what an estimator gives anyway, so this stage has an effect only
where it is hard. The estimator inside is the paper's GRPO over the M leaves, or SPO.
"""

from __future__ import annotations

from typing import Any, Literal

from solostream.training.advantages.base import Advantage, Advantages, Trees
from solostream.training.advantages.tree.nodes import mean_below, nodes, spread_over, trees, worth
from solostream.training.batch import Batch


class ARPOAttribution:
    """A stage. Raises UserError for trajectories that grew on no tree."""

    trees: Trees = "required"

    def __init__(self, inner: Advantage, *, attribution: Literal["hard", "soft"] = "hard") -> None:
        self.inner, self.attribution = inner, attribution

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages; hard: their mean over the leaves that share a token."""
        before = self.inner(batch)
        leaf, values = worth(before), list(before.values)
        for members in trees(batch):
            for i in members if self.attribution == "hard" else ():
                parts = [(node, mean_below(leaf, node)) for node in nodes(batch, members, i)]
                values[i] = spread_over(batch[i], parts)
        return Advantages(values, before.metrics)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
