"""D³S, dynamic dual-level down-sampling (arXiv 2509.22115): learn from what tells most, at first; later from more.

Trajectories: of each group (without groups: of the batch) those are kept whose advantages have the largest variance.
The best n of them are some of the largest and some of the smallest, so n + 1 choices are tried. Tokens: of what is left
those with the largest |A|·H keep their advantage. Both shares grow to 1 over the first `relax_over` batches; 0: never.
What is left out gets 0 and still counts in the loss's denominator, so that the others do not weigh more. The paper's
shares and its schedule could not be confirmed; these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages, Grouping
from solostream.training.advantages.credit.entropy import Entropies, Source, reader
from solostream.training.advantages.groups import groups
from solostream.training.batch import Batch, kept_of

Share = Annotated[float, Field(gt=0, le=1)]


class D3S:
    """trajectories, tokens: the shares that are kept at first. relax_over: batches until all are."""

    groups: Grouping = "optional"

    def __init__(
        self,
        inner: Advantage,
        *,
        trajectories: Share = 0.5,
        tokens: Share = 0.5,
        relax_over: Annotated[int, Field(ge=0)] = 0,
        entropy: Source = "sampled",
        entropies: Entropies | None = None,
    ) -> None:
        self.inner, self.trajectories, self.tokens, self.relax_over = inner, trajectories, tokens, relax_over
        self._read = reader(entropy, entropies)
        self._batches = 0

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages; 0 for what is left out."""
        before = self.inner(batch)
        means = [float(v.mean()) if len(v) else 0.0 for v in before.values]
        grouped = all(t.dispatch.group is not None for t in batch)
        together = [i for i, keep in enumerate(kept_of(batch)) if keep]
        left: list[int] = []
        for members in groups(batch).values() if grouped else [together]:
            chosen = widest([means[i] for i in members], self._count(self.trajectories, len(members), 2))
            left += [members[place] for place in chosen]

        entropy = self._read(batch)
        values = [np.zeros(len(v)) for v in before.values]
        weighed = [np.abs(before.values[i]) * entropy[i] for i in sorted(left)]
        pooled = np.concatenate(weighed) if weighed else np.zeros(0)
        take = np.zeros(len(pooled), bool)
        take[np.argsort(-pooled, kind="stable")[: self._count(self.tokens, len(pooled), 1)]] = True
        ends = np.cumsum([len(w) for w in weighed])[:-1]
        for i, mask in zip(sorted(left), np.split(take, ends) if weighed else [], strict=True):
            values[i] = np.where(mask, before.values[i], 0.0)
        self._batches += 1
        shares = {
            "d3s/trajectories": len(left) / max(len(together), 1),
            "d3s/tokens": float(take.mean() if len(take) else 0),
        }
        return Advantages(values, {**before.metrics, **shares})

    def _count(self, share: float, n: int, least: int) -> int:
        """How many of n are kept in this batch."""
        relaxed = min(self._batches / self.relax_over, 1.0) if self.relax_over else 0.0
        return min(max(math.ceil((share + (1 - share) * relaxed) * n - 1e-9), least), n)

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's, and how many batches there were."""
        return {"inner": self.inner.state_dict(), "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        self._batches = state["batches"]


def widest(values: Sequence[float], count: int) -> list[int]:
    """Places of the `count` values with the largest variance, in order; equal ones: the first."""
    order = np.argsort(np.asarray(values, np.float64), kind="stable")
    if count >= len(order):
        return list(range(len(order)))
    subsets = [np.concatenate((order[: count - top], order[len(order) - top :])) for top in range(count + 1)]
    best = max(subsets, key=lambda places: float(np.var([values[i] for i in places])) if count else 0.0)
    return sorted(int(i) for i in best)
