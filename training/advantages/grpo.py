"""GRPO: A = (r − mean_g)/(std_g + ε) over the answers to one prompt (arXiv 2402.03300, Eq. 4).

The paper does not say which deviation; verl and TRL divide by the sample's, G − 1 in its denominator, and so does this.

Dr. GRPO (arXiv 2503.20783) drops the division, A = r − mean_g; its constant length norm is the learner's aggregation
`seq_mean_token_sum` with `length_norm`. A group whose answers all earn the same is degenerate: no signal.
"""

from __future__ import annotations

from statistics import fmean, pstdev, stdev
from typing import Annotated, Any, Literal

from pydantic import Field

from solostream.training.advantages.base import Advantages, Grouping, per_token
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import spread
from solostream.training.batch import Batch, kept_of


class GRPO:
    """divide=False is Dr. GRPO. deviation: of the group's rewards.

    Raises UserError for trajectories without a group.
    """

    groups: Grouping = "required"
    in_parts = True

    def __init__(
        self,
        *,
        divide: bool = True,
        epsilon: Annotated[float, Field(ge=0)] = 1e-6,
        deviation: Literal["sample", "population"] = "sample",
    ) -> None:
        self.divide, self.epsilon = divide, epsilon
        self._deviation = stdev if deviation == "sample" else pstdev

    def __call__(self, batch: Batch) -> Advantages:
        """(r − mean)/(std + ε) within each group. Raises UserError for trajectories without a group."""
        r, raw = [t.reward for t in batch], [0.0] * len(batch)
        scale = [1.0] * len(batch)
        for members in groups(batch).values():
            mean = fmean(r[i] for i in members)
            deviation = self._deviation([r[i] for i in members]) if len(members) > 1 else 0.0
            for i in members:
                raw[i] = r[i] - mean
                scale[i] = deviation + self.epsilon if self.divide else 1.0
        metrics = {**spread(raw, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        return Advantages(per_token([a / s for a, s in zip(raw, scale, strict=True)], batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


class DrGRPO(GRPO):
    """GRPO without the division by the group's deviation."""

    def __init__(self) -> None:
        super().__init__(divide=False)
