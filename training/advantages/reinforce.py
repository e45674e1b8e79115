"""REINFORCE with a baseline that is one number for the whole batch, or none.

`none`         A = r                       the plain score-function estimator: fine-tuning on right answers, each as
                                           often as it is sampled
`reinforce_pp` A = (r − mean)/std          REINFORCE++ (arXiv 2501.03262) without its token-level KL penalty; also SPO's
                                           ablation "v = 0", for Eq. 9 still takes the batch's mean away
`opo`          A = r − Σ l_i r_i / Σ l_i   OPO (arXiv 2505.23585): the variance-minimising baseline when a gradient's
                                           squared norm grows with the length l; within groups where there are any
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solostream.training.advantages.base import Advantages, Grouping, centre, per_token, standardize
from solostream.training.advantages.groups import groups
from solostream.training.advantages.spo import spread
from solostream.training.advantages.stream.measure import weights
from solostream.training.batch import Batch, kept_of


class Reinforce:
    """No baseline; the others differ in `_values`."""

    in_parts = True

    def __call__(self, batch: Batch) -> Advantages:
        """One number a trajectory, over all of its action tokens; see the table above for each estimator."""
        r = [t.reward for t in batch]
        raw, values = self._values(batch, r)
        return Advantages(per_token(values, batch), spread(raw, r, kept_of(batch)))

    def _values(self, batch: Batch, r: list[float]) -> tuple[Sequence[float], Sequence[float]]:
        """(A before standardization, A), one number a trajectory each."""
        return r, r

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


class ReinforcePlusPlus(Reinforce):
    """(r − mean)/std over the whole batch."""

    in_parts = False

    def _values(self, batch: Batch, r: list[float]) -> tuple[Sequence[float], Sequence[float]]:
        used = weights(batch, "trajectory")
        return centre(r, used)[0], standardize(r, used)


class OPO(Reinforce):
    """r minus the mean reward weighted by length, of the group or, without groups, of the batch."""

    in_parts = False

    groups: Grouping = "optional"

    def _values(self, batch: Batch, r: list[float]) -> tuple[Sequence[float], Sequence[float]]:
        grouped = all(t.dispatch.group is not None for t in batch)
        values = [0.0] * len(batch)
        together = [i for i, keep in enumerate(kept_of(batch)) if keep]
        for members in groups(batch).values() if grouped else [together]:
            lengths = {i: batch[i].n_action_tokens for i in members}
            baseline = sum(lengths[i] * r[i] for i in members) / max(sum(lengths.values()), 1)
            for i in members:
                values[i] = r[i] - baseline
        return values, values
