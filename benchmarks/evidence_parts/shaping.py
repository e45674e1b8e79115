"""The reward-shaping control of ASPO's paper (arXiv 2508.19201, Eq. 1): what it advises against.

    R = 1 + δ·clip((p − mean p)/std p, −c, c)  for right answers that contain code, else r;  then GRPO's normalisation

p is the token of the first call; means and deviations are over the eligible answers of a group. In a group that is all
right the 1 cancels in the normalisation, δ with it, and about half of the right answers get a negative advantage.
"""

from __future__ import annotations

from statistics import fmean, pstdev, stdev
from typing import Any

from solostream.training.advantages.base import Advantages, Grouping, per_token
from solostream.training.advantages.groups import groups
from solostream.training.batch import Batch


class PaperShaping:
    """GRPO on shaped rewards; a component like any of a stranger's: `evidence_parts.shaping:PaperShaping`."""

    groups: Grouping = "required"

    def __init__(self, delta: float = -0.5, c: float = 1.0, correct_from: float = 0.5, epsilon: float = 1e-6) -> None:
        self.delta, self.c, self.correct_from, self.epsilon = delta, c, correct_from, epsilon

    def __call__(self, batch: Batch) -> Advantages:
        shaped, values = [t.reward for t in batch], [0.0] * len(batch)
        negative = right = 0
        for members in groups(batch).values():
            eligible = [i for i in members if batch[i].first_call_token is not None and shaped[i] >= self.correct_from]
            first = [float(batch[i].first_call_token or 0) for i in eligible]
            spread = pstdev(first) if len(first) > 1 else 0.0
            for i, p in zip(eligible, first, strict=True):
                shaped[i] = 1 + self.delta * min(max((p - fmean(first)) / spread, -self.c), self.c) if spread else 1.0
            mean = fmean(shaped[i] for i in members)
            deviation = stdev([shaped[i] for i in members]) if len(members) > 1 else 0.0
            for i in members:
                values[i] = (shaped[i] - mean) / (deviation + self.epsilon)
                if batch[i].reward >= self.correct_from:
                    right, negative = right + 1, negative + (values[i] < 0)
        return Advantages(per_token(values, batch), {"advantage/right_but_negative": negative / max(right, 1)})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
