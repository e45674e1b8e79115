"""The variance-minimising baseline of a task from its value: b = v/(v + (1 − v)·κ), κ = energy of wrong/right answers.

For one task with success rate v, E[W r]/E[W] = v·W₁/(v·W₁ + (1 − v)·W₀) with the mean energies W₁ of right and W₀ of
wrong answers, which is σ(logit v − log κ). κ is one number that all tasks share, so it is known long before any task
has been seen twice; and v stays what it says, a success rate to sample by. Wrong answers that are accidents, one token
of probability .001 and garbage after it, have κ far above 1: the baseline lies far below the value.
Fractional rewards count on both sides: W₁ = Σ W r/Σ r, W₀ = Σ W (1 − r)/Σ (1 − r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

KEEP = 0.9  # of what earlier batches said, a batch
LARGEST = 100.0  # κ and 1/κ


class EnergyRatio:
    """κ over the batches so far; 1 until both a right and a wrong answer were seen."""

    def __init__(self) -> None:
        self._sums = [0.0, 0.0, 0.0, 0.0]  # Σ W r, Σ r, Σ W (1 − r), Σ (1 − r)

    @property
    def value(self) -> float:
        """κ of the batches so far, within [1/100, 100]."""
        energy_right, right, energy_wrong, wrong = self._sums
        if min(self._sums) <= 0:
            return 1.0
        return min(max((energy_wrong / wrong) / (energy_right / right), 1 / LARGEST), LARGEST)

    def baseline(self, value: float) -> float:
        """v in [0, 1] -> b in [0, 1]."""
        return value / (value + (1 - value) * self.value)

    def update(self, rewards: Sequence[float], energies: Sequence[float]) -> None:
        """One batch, of what the learner's filters leave in it: of other answers no gradient is taken. r in [0, 1]."""
        new = (
            math.fsum(w * r for w, r in zip(energies, rewards, strict=True)),
            math.fsum(rewards),
            math.fsum(w * (1 - r) for w, r in zip(energies, rewards, strict=True)),
            math.fsum(1 - r for r in rewards),
        )
        self._sums = [KEEP * old + x for old, x in zip(self._sums, new, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sums = list(state["sums"])
