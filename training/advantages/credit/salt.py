"""SALT (arXiv 2510.20022): steps that several answers to one prompt have in common share the mean of their advantages.

The answers to a prompt are laid over one another as a graph. Where the same action was taken in the same state, the
step did not decide between them: it gets the mean of the advantages of all that took it. Where they part, a step keeps
its own. In a common beginning right and wrong answers cancel; what is left is the turn that made the difference.
State and action: `credit.steps`. The paper's own test of equal states (a window of its history) could not be confirmed:
only its abstract and summaries were at hand.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from solostream.training.advantages.base import Advantage, Advantages, Grouping
from solostream.training.advantages.credit.steps import State, actions, spans, states
from solostream.training.advantages.groups import groups
from solostream.training.batch import Batch


class SALT:
    """state: what makes two states equal. Raises UserError for trajectories without a group."""

    groups: Grouping = "required"
    in_parts = True

    def __init__(self, inner: Advantage, *, state: State = "history") -> None:
        self.inner, self.state = inner, state

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, those of common steps averaged."""
        before = self.inner(batch)
        values = [v.copy() for v in before.values]
        shared = turns = 0
        for members in groups(batch).values():
            edges: dict[tuple[str, str], list[tuple[int, slice]]] = defaultdict(list)
            for i in members:
                steps = zip(states(batch[i], self.state), actions(batch[i]), spans(batch[i]), strict=True)
                for state, action, span in steps:
                    if span.stop > span.start:
                        edges[state, action].append((i, span))
            for places in edges.values():
                turns += len(places)
                if len({i for i, _ in places}) > 1:
                    shared += len(places)
                    mean = np.mean([before.values[i][s].mean() for i, s in places])
                    for i, s in places:
                        values[i][s] = mean
        return Advantages(values, {**before.metrics, "salt/shared": shared / max(turns, 1)})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
