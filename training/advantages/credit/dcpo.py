"""DCPO's smooth advantage standardisation (arXiv 2509.02333, Sec. 3.2; its clip is the loss `dcpo`).

Of the i-th batch that a prompt has part in:
    A_new = (r − mean)/std of the group,   A_total = (r − mean)/std of all rewards of the prompt so far, these included
    S_new = ((i − 1)·A_new + A_total)/i,   S_total = (A_new + (i − 1)·A_total)/i;   A = the one of smaller |·|

A group whose answers all earn the same still counts, by A_total/i, and one odd group no longer turns a sign. So a
prompt has a memory, which an estimator with a value tracker has anyway: this one is for groups.
The deviations are the sample's, as everywhere here where groups are compared; the paper does not say which.
"""

from __future__ import annotations

import math
from typing import Any

from solostream.training.advantages.base import Advantages, Grouping, per_token
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import spread
from solostream.training.batch import Batch, kept_of


class DCPO:
    """Raises UserError for trajectories without a group."""

    groups: Grouping = "required"
    in_parts = True

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}  # task -> batches, answers, Σr, Σr²

    def __call__(self, batch: Batch) -> Advantages:
        """Standardized within the group and over the prompt's history. Raises UserError without groups."""
        r, values = [t.reward for t in batch], [0.0] * len(batch)
        for members in groups(batch).values():
            if not members:
                continue
            rewards = [r[i] for i in members]
            now = [1.0, float(len(rewards)), math.fsum(rewards), math.fsum(x * x for x in rewards)]
            task = batch[members[0]].task_id
            total = [a + b for a, b in zip(self._seen.get(task, [0.0] * 4), now, strict=True)]
            self._seen[task] = total
            for i in members:
                values[i] = smooth(_standard(r[i], *now[1:]), _standard(r[i], *total[1:]), total[0])
        metrics = {**spread(values, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        return Advantages(per_token(values, batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Each prompt's sums."""
        return {"seen": {task: list(sums) for task, sums in self._seen.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._seen = {task: list(sums) for task, sums in state["seen"].items()}


def smooth(new: float, total: float, i: float) -> float:
    """The two standardized rewards of the i-th batch, i ≥ 1 -> the advantage."""
    mixed = ((i - 1) * new + total) / i, (new + (i - 1) * total) / i
    return mixed[0] if abs(mixed[0]) < abs(mixed[1]) else mixed[1]


def _standard(r: float, n: float, total: float, squares: float) -> float:
    """(r − mean)/std of n rewards by their sums; 0 where all are equal."""
    if n < 2:
        return 0.0
    variance = max(squares - total * total / n, 0.0) / (n - 1)
    return (r - total / n) / math.sqrt(variance) if variance > 1e-12 else 0.0
