"""The synchronous collector waits for every episode of a batch before the learner moves.

It is the seeded mode that is bit-reproducible on CPU. Like the asynchronous one it writes a batch to the log before it
hands it out.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.training.rollouts.request import PromptSource, RolloutRequest
from solostream.training.rollouts.retry import RetryPolicy


class SyncCollector:
    """A batch at a time; the learner waits for the rollouts and they for it."""

    def __init__(self, source: PromptSource, log: TrajectoryLog, *, batch: int) -> None:
        self._source = source
        self._log = log
        self._batch = batch
        self._retry = RetryPolicy(source.play, retries=source.retries, patience=batch)
        self._open: list[RolloutRequest] = []  # of the round that runs now
        self._episodes: asyncio.Future[list[Trajectory | None]] | None = None
        self._busy_s = 0.0
        self.version = 0

    @property
    def counts(self) -> Counter[str]:
        """Failures by name, since the start of the process."""
        return self._retry.counts

    @property
    def busy_s(self) -> float:
        """Seconds in which episodes ran."""
        return self._busy_s

    async def take(self) -> list[Trajectory]:
        """A batch in the order of dispatch, logged. Episodes given up are missing."""
        started = time.monotonic()
        # After a resume the requests of the unfinished round are there already.
        while len(self._open) < self._batch:
            self._open.extend(self._source.draw())
        # `gather` keeps the order of the requests, whichever episode ends first: that is what makes it reproducible.
        self._episodes = asyncio.gather(*map(self._retry.run, self._open))
        batch = [trajectory for trajectory in await self._episodes if trajectory is not None]
        # The round is closed only once all of it is on disk: until then a checkpoint asks for it again.
        await self._log.append(*batch)
        self._open = []
        self._busy_s += time.monotonic() - started
        return batch

    async def settle(self) -> None:
        """Nothing is sampled between rounds."""

    def advance(self, version: int) -> None:
        """The learner's policy is now `version`."""
        self.version = version

    def finish(self) -> None:
        """Nothing runs between rounds."""

    def state_dict(self) -> dict[str, Any]:
        """The requests of an unfinished round: all of it runs again."""
        return {"outstanding": [request.to_dict() for request in self._open]}

    def restore(self, state: Mapping[str, Any], finished: Iterable[Trajectory]) -> None:
        """`finished` is not used: a round that was cut off runs again as a whole."""
        self._open = [RolloutRequest.from_dict(record) for record in state["outstanding"]]

    async def close(self) -> None:
        """Cancel the round that is under way and wait for it."""
        if self._episodes is not None:
            self._episodes.cancel()
            await asyncio.gather(self._episodes, return_exceptions=True)
