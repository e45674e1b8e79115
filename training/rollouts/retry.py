"""Episodes against failing infrastructure: the one place of the trainer that tries again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from solostream.agent.engine import EngineError
from solostream.agent.exploration.tree import leaves_of
from solostream.errors import SandboxError
from solostream.retry import retry
from solostream.training.rollouts.request import Finished, RolloutRequest

P = TypeVar("P", bound=Finished)


class RetryPolicy(Generic[P]):
    """Runs episodes against failing infrastructure: bounded retries, every failure counted, none becomes a reward."""

    def __init__(self, play: Callable[[RolloutRequest], Awaitable[P]], *, retries: int, patience: int) -> None:
        """patience: so many episodes given up in a row end the run."""
        self._play = play
        self._retries = retries
        self._patience = patience
        self._dropped_in_a_row = 0
        self.counts: Counter[str] = Counter()

    async def run(self, request: RolloutRequest) -> P | None:
        """The finished episode or tree; None when it was given up. Raises when nothing works any more."""

        async def attempt() -> P:
            played = await self._play(request)
            # Where its reward failed, and not its sandbox, another try would be scored no better.
            lost = [one for one in leaves_of(played) if one.ending == "infra"]
            by_its_sandbox = [one for one in lost if one.grading is None or not one.grading.failure]
            if by_its_sandbox:
                raise SandboxError(f"the episode of {request.task_id} ended in an infrastructure failure")
            return played

        try:
            played = await retry(attempt, (SandboxError, EngineError), self._retries, failed=self._count)
        except (SandboxError, EngineError) as failure:
            self.counts["infra_dropped"] += 1
            self._dropped_in_a_row += 1
            # An episode is lost now and then; when nothing comes through any more, the run is told.
            if self._dropped_in_a_row < self._patience:
                return None
            said = f"{self._dropped_in_a_row} episodes in a row were given up; the last: {failure}"
            raise type(failure)(said) from None

        # Only its reward failed: told in a line of its own, and the run goes on without it.
        if any(one.ending == "infra" for one in leaves_of(played)):
            self.counts["reward_failures"] += 1
            return None
        # Something came through: what was given up before were single losses.
        self._dropped_in_a_row = 0
        return played

    def _count(self, error: Exception, left: int) -> None:
        # Every try is counted, not only the last: a sandbox that works at the second try is a sandbox to look at.
        self.counts["infra_failures"] += 1
        self.counts["engine_failures"] += isinstance(error, EngineError)
