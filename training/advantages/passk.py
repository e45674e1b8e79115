"""Pass@k training (arXiv 2508.10751, Sec. 2.3.3): the advantage of being one of k answers of which one must be right.

Of n answers to a prompt c are right. The mean reward of all their subsets of k is R = 1 − C(n−c, k)/C(n, k), its
deviation σ = √(R(1 − R)), and averaged over the subsets that an answer is in

    A_right = (1 − R)/σ        A_wrong = (1 − R − C(n−c−1, k−1)/C(n−1, k−1))/σ

A prompt on which every subset has a right answer (n − c < k) has no signal: what is solved often enough is left alone,
so the policy keeps its other ways. k = 1 is GRPO with the population's deviation. σ is the authors'; without it
(divide = false) the mean of A·∇log π over a group is 1/k of the unbiased gradient of pass@k, with R as its baseline.
An answer is right above one half; fractions of a reward are not ranked.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from solostream.training.advantages.base import Advantages, Grouping, Trees, per_token
from solostream.training.advantages.groups import degenerate_share, groups
from solostream.training.advantages.spo import spread
from solostream.training.batch import Batch, kept_of


class PassK:
    """k: how many tries count as one; more than a group has count as all of it. divide: by σ.

    Raises UserError for trajectories without a group.
    """

    groups: Grouping = "required"
    trees: Trees = "refused"

    def __init__(self, *, k: Annotated[int, Field(ge=1)] = 4, divide: bool = True) -> None:
        self.k, self.divide = k, divide

    def __call__(self, batch: Batch) -> Advantages:
        """The two values of each group, by right and wrong. Raises UserError without groups."""
        r, values = [t.reward for t in batch], [0.0] * len(batch)
        for members in groups(batch).values():
            right = [r[i] > 0.5 for i in members]
            when_right, when_wrong = passk_advantages(len(members), sum(right), self.k, divide=self.divide)
            for i, good in zip(members, right, strict=True):
                values[i] = when_right if good else when_wrong
        metrics = {**spread(values, r, kept_of(batch)), "advantage/degenerate": degenerate_share(batch, r)}
        return Advantages(per_token(values, batch), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept from one batch to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


def passk_advantages(n: int, right: int, k: int, *, divide: bool = True) -> tuple[float, float]:
    """(A of a right answer, A of a wrong one) in a group of n with so many right; (0, 0) where nothing differs."""
    k = min(k, n)
    fails = math.comb(n - right, k) / math.comb(n, k)  # a subset of k without a right answer
    if fails in (0.0, 1.0):
        return 0.0, 0.0
    sigma = math.sqrt(fails * (1 - fails)) if divide else 1.0
    others_fail = math.comb(n - right - 1, k - 1) / math.comb(n - 1, k - 1)
    return fails / sigma, (fails - others_fail) / sigma
