"""SEED-GRPO (arXiv 2505.12346): a prompt whose answers mean many things is learnt from more carefully.

    A ← A·f(α·SE/log G),   SE = −(1/K)·Σ_k log p(C_k) over the K meanings of the group's G answers
    f(x) = 1 − x (linear) or exp(−x)

Meanings are answers that are written alike; p(C_k) is their share of the group. Departures: the paper weighs a meaning
by the likelihood of its responses; and its α could not be confirmed, so ½ is ours. No answer at all is a meaning, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from solostream.training.advantages.base import Advantage, Advantages, Grouping
from solostream.training.advantages.groups import groups
from solostream.training.batch import Batch


class SEED:
    """alpha: how much is taken off where every answer means another thing. Raises UserError without groups."""

    groups: Grouping = "required"
    in_parts = True

    def __init__(
        self,
        inner: Advantage,
        *,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
        form: Literal["linear", "exponential"] = "linear",
    ) -> None:
        self.inner, self.alpha, self.form = inner, alpha, form

    def __call__(self, batch: Batch) -> Advantages:
        """The inner advantages, those of uncertain prompts smaller."""
        before = self.inner(batch)
        values = list(before.values)
        found = []
        for members in groups(batch).values():
            if len(members) > 1:
                uncertain = semantic_entropy([batch[i].answer for i in members]) / math.log(len(members))
                x = self.alpha * uncertain
                factor = 1 - x if self.form == "linear" else math.exp(-x)
                for i in members:
                    values[i] = values[i] * factor
                found.append(uncertain)
        return Advantages(values, {**before.metrics, "seed/semantic_entropy": fmean(found) if found else 0.0})

    def state_dict(self) -> dict[str, Any]:
        """The inner estimator's."""
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])


def semantic_entropy(answers: Sequence[str | None]) -> float:
    """−(1/K)·Σ log p over the K different answers, in nats: 0 where all are alike, log n where none are."""
    counts = Counter(None if a is None else " ".join(a.split()) for a in answers)
    return -fmean(math.log(n / len(answers)) for n in counts.values())
