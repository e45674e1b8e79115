"""DUMP: a bandit over sources of problems (arXiv 2504.09710, Sec. 3.3, Eq. 4; window and 0.1 of the authors' code).

    u_j = L_j + √(2 ln(n + 1)/(n_j + 1))        source j with probability ∝ exp(u_j/temperature)

L_j is the mean |A| of the last 300 trajectories of source j: how much can still be learnt there (their Theorem 3.1);
n_j of n trajectories were of source j, so the second term sees to those that are rarely drawn.
Departures: a trajectory's |A| is what the learner gets, whatever the estimator, the mean over its action tokens. Within
a source problems come in shuffled passes; the authors draw with replacement.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from solostream.errors import UserError
from solostream.training.rollouts.samplers.history import OutcomeHistory
from solostream.training.rollouts.task_sampler import Uniform, restore, state_of


class Dump:
    """temperature: of the softmax. Raises UserError for tasks of one source: there is nothing to choose."""

    def __init__(
        self,
        task_ids: Sequence[str],
        history: OutcomeHistory,
        seed: int = 0,
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
    ) -> None:
        self.history, self.temperature = history, temperature
        members: dict[str, list[str]] = {}
        for task_id in task_ids:
            members.setdefault(history.source(task_id), []).append(task_id)
        if len(members) < 2:
            raise UserError("sampler 'dump' chooses among sources, and all tasks here have one: mix several data sets")
        self._within = {source: Uniform(ids, seed + i) for i, (source, ids) in enumerate(members.items())}
        self._random = random.Random(seed)

    def probabilities(self) -> dict[str, float]:
        """Source -> how likely it is drawn now."""
        h, n = self.history, sum(map(self.history.drawn, self._within))
        score = {j: h.size(j) + math.sqrt(2 * math.log(n + 1) / (h.drawn(j) + 1)) for j in self._within}
        top = max(score.values())
        weight = {j: math.exp((u - top) / self.temperature) for j, u in score.items()}
        total = math.fsum(weight.values())
        return {j: w / total for j, w in weight.items()}

    def next(self) -> str:
        """A source by the bandit, its next task."""
        p = self.probabilities()
        return self._within[self._random.choices(list(p), list(p.values()))[0]].next()

    def metrics(self) -> Mapping[str, float]:
        """The probability of each source."""
        return {f"sampler/{source or 'unnamed'}": p for source, p in self.probabilities().items()}

    def state_dict(self) -> dict[str, Any]:
        """Random numbers, and what is left of each source's pass."""
        within = {source: passes.state_dict() for source, passes in self._within.items()}
        return {"random": state_of(self._random), "within": within}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        restore(self._random, state["random"])
        for source, passes in self._within.items():
            passes.load_state_dict(state["within"][source])
