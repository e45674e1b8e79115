"""EMPG, entropy-modulated policy gradients (arXiv 2509.09265, Eq. 8 and 10-12).

    h = (H − min H)/(max H − min H) over the turns of the batch, H the mean entropy of a turn's tokens
    g(h) = exp(−k·h)/mean exp(−k·h),   f(h) = exp(−k'·h)
    A_t ← A·g(h_t) + ζ·f(h_{t+1}), without the second term on the last turn; then less its mean over the turns

What was done with confidence is moved more, what was a guess less; and a turn that leads to a clear one is paid for it.
Departures: H is by default the mean of −log π of the sampled tokens; trajectories that the learner's filters take out
have no part in the batch's least, largest and mean. Of ζ the public implementations have .05 and .1.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.advantages.credit.entropy import Entropies, Source, reader
from solostream.training.advantages.credit.steps import spans
from solostream.training.batch import Batch, kept_of

Rate = Annotated[float, Field(ge=0)]


class EMPG:
    """k, k_future: how fast the two weights fall with the entropy. zeta: of the bonus for a clear next turn."""

    def __init__(
        self,
        inner: Advantage,
        *,
        k: Rate = 1.0,
        k_future: Rate = 1.0,
        zeta: Rate = 0.1,
        entropy: Source = "sampled",
        entropies: Entropies | None = None,
    ) -> None:
        self.inner, self.k, self.k_future, self.zeta = inner, k, k_future, zeta
        self._read = reader(entropy, entropies)

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, weighed turn by turn."""
        before = self.inner(batch)
        entropy = self._read(batch)
        turns = [
            (i, s)
            for i, keep in enumerate(kept_of(batch))
            for s in spans(batch[i])
            if keep and s.stop > s.start
        ]  # fmt: skip
        if not turns:
            return before
        h = np.array([entropy[i][s].mean() for i, s in turns])
        h = (h - h.min()) / (np.ptp(h) or 1.0)
        weight, clarity = np.exp(-self.k * h), np.exp(-self.k_future * h)
        weight /= weight.mean()

        values = [np.zeros(len(v)) for v in before.values]
        for n, (i, s) in enumerate(turns):
            goes_on = n + 1 < len(turns) and turns[n + 1][0] == i
            values[i][s] = before.values[i][s] * weight[n] + (self.zeta * clarity[n + 1] if goes_on else 0.0)
        mean = np.mean([values[i][s].mean() for i, s in turns])
        for i, s in turns:
            values[i][s] -= mean
        return Advantages(values, {**before.metrics, "empg/weight_min": float(weight.min())})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
