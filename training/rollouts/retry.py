"""Episodes against failing infrastructure: the one place of the trainer that tries again."""

from __future__ import annotations

from collections import Counter

from solostream.agent.engine import EngineError
from solostream.agent.trajectory import Trajectory
from solostream.errors import SandboxError
from solostream.training.rollouts.request import Play, RolloutRequest


class RetryPolicy:
    """Runs episodes against failing infrastructure: bounded retries, every failure counted, none becomes a reward."""

    def __init__(self, play: Play, *, retries: int, patience: int) -> None:
        """patience: so many episodes given up in a row end the run."""
        self._play, self._retries, self._patience = play, retries, patience
        self._dropped_in_a_row = 0
        self.counts: Counter[str] = Counter()

    async def run(self, request: RolloutRequest) -> Trajectory | None:
        """The finished episode; None when it was given up. Raises when nothing works any more."""
        for _ in range(self._retries + 1):
            try:
                trajectory = await self._play(request)
            except (SandboxError, EngineError) as error:
                failure: SandboxError | EngineError = error
                self.counts["engine_failures"] += isinstance(error, EngineError)
            else:
                if trajectory.ending != "infra":
                    self._dropped_in_a_row = 0
                    return trajectory
                if trajectory.grading and trajectory.grading.failure:  # told in a line of its own; the run goes on
                    self.counts["reward_failures"] += 1
                    return None
                failure = SandboxError(f"the episode of {request.task_id} ended in an infrastructure failure")
            self.counts["infra_failures"] += 1
        self.counts["infra_dropped"] += 1
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= self._patience:
            raise type(failure)(f"{self._dropped_in_a_row} episodes in a row were given up; the last: {failure}")
        return None
