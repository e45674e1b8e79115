"""RLOO: the baseline is the mean of the OTHER answers to the prompt, A_i = r_i − mean_{j≠i} r_j (arXiv 2402.14740).

Unlike GRPO's group mean it does not contain r_i, so the gradient is unbiased. A group of one has no others: A = 0.
"""

from __future__ import annotations

from typing import Any

from solostream.training.advantages.base import Advantages, Grouping, Trees, per_token
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import spread
from solostream.training.batch import Batch, kept_of


class RLOO:
    """Raises UserError for trajectories without a group."""

    groups: Grouping = "required"
    trees: Trees = "refused"
    in_parts = True

    def __call__(self, batch: Batch) -> Advantages:
        """r minus the mean reward of the others in its group; 0 for one alone. Raises UserError without groups."""
        r, values = [t.reward for t in batch], [0.0] * len(batch)
        for members in groups(batch).values():
            total = sum(r[i] for i in members)
            for i in members:
                if len(members) > 1:
                    values[i] = r[i] - (total - r[i]) / (len(members) - 1)
        metrics = {**spread(values, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        return Advantages(per_token(values, batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""
