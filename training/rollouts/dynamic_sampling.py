"""Dynamic sampling: over-sample until a batch is made of informative groups (DAPO, arXiv 2503.14476, Sec. 3.2).

A group whose answers all earned the same has the advantage 0 everywhere; it is discarded and another prompt is drawn in
its place, so that the number of trajectories with a gradient does not shrink as prompts are solved. What is discarded
is counted (trajectories and tokens), and trackers and samplers learn from its outcomes: else they would take every
prompt for a mixed one.

Departure: the authors go on without end, or end the run after so many rounds. Here at most `limit` trajectories are
discarded for one batch; then groups are taken as they come, for a pool that is all solved would never make a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from solostream.agent.trajectory import Trajectory

Kept = Callable[[Sequence[Trajectory]], Sequence[bool]]


def informative(group: Sequence[Trajectory], kept: Kept | None = None) -> bool:
    """Whether its answers earned different rewards. kept: which of them the learner's filters leave; None: all."""
    flags = [True] * len(group) if kept is None else kept(group)
    rewards = [t.reward for t, keep in zip(group, flags, strict=True) if keep]
    return len(rewards) > 1 and max(rewards) - min(rewards) > 1e-9


class DynamicSampling:
    """Which groups a batch is not made of. limit: trajectories that one batch may discard. kept: as `informative`."""

    def __init__(self, limit: int, kept: Kept | None = None) -> None:
        self._limit, self._kept = limit, kept
        self.discarded = 0  # for the batch that is being collected

    def discards(self, group: Sequence[Trajectory]) -> bool:
        """Whether to draw another prompt instead of `group`, which is then counted."""
        if self.discarded + len(group) > self._limit or informative(group, self._kept):
            return False
        self.discarded += len(group)
        return True

    def taken(self) -> None:
        """A batch is complete; the next one may discard as many."""
        self.discarded = 0
