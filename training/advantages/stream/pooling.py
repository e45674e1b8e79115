"""Partial pooling: a task never seen starts from its source, its level there and the population, until its own visits.

Success rates of a population are Beta(c·m, c·(1 − m)) by moments: m is the mean reward, and since the outcomes of two
visits to one task share nothing but its rate p, Cov(r, r') = Var(p), whatever the number of visits:

    c = m(1 − m)/Var(p) − 1,  within [1, N0];  the prior of a task is (c·m, c·(1 − m)) of the nearest that is known

m and Cov are means over the newest evidence (an observation counts 1 − 1/512 when the next one comes). A source's are
pulled to the population's, those of a level of it (`meta["level"]`) to the source's: m like 8 outcomes, Cov like 32
pairs. Before there is any pair c = 2.
"""

from __future__ import annotations

from typing import Any

KEEP = 1 - 1 / 512
MEAN_PRIOR, PAIR_PRIOR = 8.0, 32.0
UNKNOWN = 2.0  # c before any task was seen twice


class Pool:
    """Moments of "", the population, of sources, and of their levels. strongest: N0, the most a prior is believed."""

    def __init__(self, strongest: float) -> None:
        self.strongest = strongest
        self._moments: dict[str, list[float]] = {}  # Σr, n, Σ(r − m)(r' − m), pairs: all decayed

    def prior(self, source: str, level: str = "") -> tuple[float, float]:
        """(α, β) of a task of that source and level that was never seen; "": it has none."""
        rewards, n, products, pairs = self._moments.get("", [0.0, 0.0, 0.0, 0.0])
        mean = (rewards + 0.5) / (n + 1)  # half a success and half a failure
        spread: float | None = products / pairs if pairs else None
        for name in _path(source, level)[1:]:
            rewards, n, products, pairs = self._moments.get(name, [0.0, 0.0, 0.0, 0.0])
            mean = (rewards + MEAN_PRIOR * mean) / (n + MEAN_PRIOR)
            if spread is not None:
                spread = (products + PAIR_PRIOR * spread) / (pairs + PAIR_PRIOR)
        c = UNKNOWN
        if spread is not None:
            c = mean * (1 - mean) / spread - 1 if spread > 0 else self.strongest
        c = min(max(c, 1.0), self.strongest)
        return c * mean, c * (1 - mean)

    def observe(self, source: str, reward: float, before: float | None, level: str = "") -> None:
        """One outcome; `before`: the task's last one, None at its first visit."""
        for name in _path(source, level):
            m = self._moments.setdefault(name, [0.0, 0.0, 0.0, 0.0])
            mean = (m[0] + 0.5) / (m[1] + 1)
            pair = 0.0 if before is None else 1.0
            new = (reward, 1.0, pair * (reward - mean) * ((before or 0.0) - mean), pair)
            self._moments[name] = [KEEP * old + x for old, x in zip(m, new, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: list(moments) for name, moments in self._moments.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._moments = {name: list(moments) for name, moments in state.items()}


def _path(source: str, level: str) -> list[str]:
    """From the population to the nearest: what a task has no name for is left out, and so is the level of no source."""
    return ["", *([source] if source else []), *([f"{source} (level {level})"] if source and level else [])]
