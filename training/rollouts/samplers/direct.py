"""Without the tool where the policy does not need it: a share of the draws is sent out as `ID~direct`.

After SMART (arXiv 2502.11435: answer from what is known, call where it is not) and the forced instant mode of A²FM's
adaptive policy optimization (2510.12838). The tracker of the form is the value of the policy without the tool, v₀(x);
it costs `share` of the draws to keep. Where v₀ > known, a problem goes out without the tool `when_known` of the time.
The stage `tool_cost` charges calls by the same value. Departures: SMART makes its choice in supervised data, by whether
the model was right alone; the values `share`, `known` and `when_known` are ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from solostream.envs.data.forms import MARK
from solostream.training.rollouts.samplers.history import OutcomeHistory
from solostream.training.rollouts.samplers.inner import Of, inner
from solostream.training.rollouts.task_sampler import restore, state_of

Share = Annotated[float, Field(ge=0, le=1)]


class Direct:
    """of: the sampler of problems; its options as in the module's docstring."""

    forms = ("direct",)

    def __init__(
        self,
        task_ids: Sequence[str],
        history: OutcomeHistory,
        seed: int = 0,
        batch: int = 1,
        *,
        of: Of = "uniform",
        share: Share = 0.25,
        known: Share = 0.75,
        when_known: Share = 0.5,
    ) -> None:
        self.inner = inner(of, task_ids, history, seed, batch)
        self.history, self.share, self.known, self.when_known = history, share, known, when_known
        self._random = random.Random(seed)

    def next(self) -> str:
        """A task, with the tool or without."""
        task_id = self.inner.next()
        alone = f"{task_id}{MARK}direct"
        share = self.when_known if self.history.value(alone) > self.known else self.share
        return alone if self._random.random() < share else task_id

    def state_dict(self) -> dict[str, Any]:
        """The inner sampler's, and its own random numbers."""
        return {"inner": self.inner.state_dict(), "random": state_of(self._random)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        restore(self._random, state["random"])
