"""REINFORCE with a baseline that is one number for the whole batch, or none.

`none`  A = r                            the plain score-function estimator
`batch` A = (r − mean)/std               REINFORCE++ (arXiv 2501.03262) without its token-level KL penalty
`opo`   A = r − Σ l_i r_i / Σ l_i        OPO (arXiv 2505.23585): the variance-minimising baseline when a gradient's
                                         squared norm grows with the length l; within groups where there are any
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from solostream.training.advantages.base import Advantages, per_token, standardize
from solostream.training.advantages.groups import groups
from solostream.training.advantages.spo import spread
from solostream.training.batch import Batch

Baseline = Literal["none", "batch", "opo"]


class Reinforce:
    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline

    def __call__(self, batch: Batch) -> Advantages:
        r = [t.reward for t in batch]
        if self.baseline == "none":
            raw = values = r
        elif self.baseline == "batch":
            mean = sum(r) / max(len(r), 1)
            raw, values = [x - mean for x in r], standardize(r)
        else:
            raw = values = _length_weighted(batch, r)
        return Advantages(per_token(values, batch), spread(raw, r))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _length_weighted(batch: Batch, r: Sequence[float]) -> list[float]:
    grouped = all(t.dispatch.group is not None for t in batch)
    values = [0.0] * len(batch)
    for members in groups(batch).values() if grouped else [range(len(batch))]:
        lengths = {i: batch[i].n_action_tokens for i in members}
        baseline = sum(lengths[i] * r[i] for i in members) / max(sum(lengths.values()), 1)
        for i in members:
            values[i] = r[i] - baseline
    return values
