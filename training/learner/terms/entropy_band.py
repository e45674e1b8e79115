"""EPO's entropy smoothing (arXiv 2509.22576): the entropy of a token is held near what it was in earlier updates.

    L = L_policy − λ·(H − β·P(H)),   P = the distance of H to [κ_l·H̄, κ_r·H̄], 0 inside

H̄ is the mean entropy of all earlier updates; the first one has no band. λ is `entropy_coef`, κ `entropy_band`, β
`entropy_band_weight`. So a policy can neither collapse nor drift into noise from one update to the next. Departures:
the authors' code charges a constant (.1) outside the band, which has no gradient at all; a distance has one. Their H̄
and band are a turn's, ours one for all turns; and their β that changes over the run is fixed here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class EntropyBand:
    """low, high: κ_l, κ_r, as shares of the mean entropy so far."""

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high
        # H̄ is a running mean: of all earlier updates, however many there were.
        self._sum = 0.0
        self._updates = 0

    def outside(self, entropy: Tensor) -> Tensor:
        """How far each of n entropies lies outside the band, in nats, with the gradient that draws it back [n]."""
        # The first update has nothing that it could be held to.
        if not self._updates:
            return entropy.new_zeros(len(entropy))
        mean = self._sum / self._updates
        # At most one of the two is above 0, and inside the band neither.
        below = (self.low * mean - entropy).clamp(min=0)  # [n]
        above = (entropy - self.high * mean).clamp(min=0)  # [n]
        return below + above

    def record(self, entropy: float) -> None:
        """The mean entropy of the tokens of one update, in nats."""
        self._sum += entropy
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"sum": self._sum, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sum = state["sum"]
        self._updates = state["updates"]
