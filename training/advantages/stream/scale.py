"""What a centred batch is divided by.

`none`       1, and it is not centred either: A = r − v as it is, which can be told of each trajectory alone
`deviation`  its own                       SPO, Eq. 9; a batch in which nearly all are right is blown up to deviation 1
`centred`    1                             nothing is amplified; the size of a step follows the signal that is left
`fixed`      0.5                           the largest deviation that outcomes on [0, 1] can have
`running`    √EMA σ² over the batches      the batch at hand included, and no less than its own: a batch without signal
                                           stays small, and the first with some after many is not blown up for them
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from solostream.training.advantages.base import centre

Kind = Literal["deviation", "centred", "fixed", "running", "none"]
KEEP = 0.9  # of what earlier batches said, a batch
LARGEST_DEVIATION = 0.5  # of numbers on [0, 1]


class Scale:
    """Centres under weights and divides; `running` has a state."""

    def __init__(self, kind: Kind = "deviation") -> None:
        self.kind = kind
        self._square = self._seen = 0.0  # EMA of σ², and of 1

    def __call__(self, advantages: Sequence[float], weights: Sequence[float]) -> tuple[list[float], list[float]]:
        """n floats, n weights -> (centred, centred and divided), n floats each; zeros where all are equal."""
        if self.kind == "none":
            return list(advantages), list(advantages)
        centred, deviation = centre(advantages, weights)
        if self.kind == "running" and any(weights):  # where the filters took everything, nothing was measured
            self._square = KEEP * self._square + deviation**2
            self._seen = KEEP * self._seen + 1
        if deviation == 0:
            return centred, [0.0] * len(centred)
        running = max(math.sqrt(self._square / self._seen), deviation) if self._seen else 1.0
        by = {"deviation": deviation, "centred": 1.0, "fixed": LARGEST_DEVIATION, "running": running}[self.kind]
        return centred, [a / by for a in centred]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"square": self._square, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._square, self._seen = state["square"], state["seen"]
