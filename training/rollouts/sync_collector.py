"""The synchronous collector plays whole batches; a seeded run with it is bit-reproducible on CPU.

Plain, the learner waits for every episode of its batch, and the episodes wait for the learner. With `overlap` the two
work at the same time, in lockstep, and the run is reproducible all the same (after Cleanba, arXiv 2310.00036, Sec. 3).
While the learner works on batch t, batch t+1 is sampled under the weights from before that update: those of t−1 updates
and no others, whatever the machine is doing. So every trajectory after the first batch is exactly one version old, and
which episodes make a batch depends on nothing but the seed.

    learner   …  update t−1 │ update t           │ update t+1         …
    sampler   …  batch t    │ batch t+1          │ batch t+2          …
    weights      of t−2     │ of t−1             │ of t               updates

`settle` waits for what is being sampled: the caller loads new weights only then. Like the asynchronous collector this
one writes a batch to the log before it hands it out.
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
    """A batch of `batch` trajectories at a time. overlap: the next one is sampled while the learner has this one."""

    def __init__(self, source: PromptSource, log: TrajectoryLog, *, batch: int, overlap: bool = False) -> None:
        self._source = source
        self._log = log
        self._batch = batch
        self._overlap = overlap
        self._retry = RetryPolicy(source.play, retries=source.retries, patience=batch)

        self._open: list[RolloutRequest] = []  # of the batch that is sampled, or waits to be taken
        self._sampling: asyncio.Task[list[Trajectory]] | None = None
        self._logged: dict[int, Trajectory] = {}  # event -> what a resumed run has of its first batch already
        self._busy_s = 0.0
        self.version = 0

    @property
    def counts(self) -> Counter[str]:
        """Since the start: infra_failures, infra_dropped, reward_failures, engine_failures."""
        return self._retry.counts

    @property
    def busy_s(self) -> float:
        """Seconds in which a batch was being sampled."""
        return self._busy_s

    async def take(self) -> list[Trajectory]:
        """A batch in the order of dispatch, logged. Episodes given up are missing."""
        if self._sampling is None:
            self._begin()
        assert self._sampling is not None
        try:
            batch = await self._sampling
        finally:
            self._sampling = None
        # The batch is closed only once all of it is on disk: until then a checkpoint asks for it again.
        self._open = []
        # The next one is on its way before the learner gets this one.
        if self._overlap:
            self._begin()
        return batch

    async def settle(self) -> None:
        """Until the batch that is being sampled is complete: no episode may see other weights than it began with."""
        if self._sampling is not None:
            await asyncio.wait([self._sampling])

    def advance(self, version: int) -> None:
        """The policy is now `version`. Nothing is in flight."""
        self.version = version

    def finish(self) -> None:
        """A batch on its way is completed: a run that is made longer later has it as if it had never stopped."""

    def state_dict(self) -> dict[str, Any]:
        """The requests of the batch on its way; what of it is finished stands in the log."""
        return {"outstanding": [request.to_dict() for request in self._open]}

    def restore(self, state: Mapping[str, Any], finished: Iterable[Trajectory]) -> None:
        """`finished`: the log's trajectories that no checkpointed step has used (`collector.unused`)."""
        self._open = [RolloutRequest.from_dict(record) for record in state["outstanding"]]
        self._logged = {trajectory.dispatch.event: trajectory for trajectory in finished}

    async def close(self) -> None:
        """Cancel the batch on its way and wait for it."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)

    def _begin(self) -> None:
        """Send out a whole batch. After a resume the requests of the unfinished one are there already."""
        while len(self._open) < self._batch:
            self._open.extend(self._source.draw())
        self._sampling = asyncio.create_task(self._sample(tuple(self._open)))

    async def _sample(self, requests: tuple[RolloutRequest, ...]) -> list[Trajectory]:
        started = time.monotonic()
        # What the log of a resumed run holds was sampled under these very weights, and is not sampled again.
        missing = [request for request in requests if request.dispatch.event not in self._logged]
        # `gather` keeps the order of the requests, whichever episode ends first: that is what makes it reproducible.
        played = await asyncio.gather(*map(self._retry.run, missing))
        fresh = [trajectory for trajectory in played if trajectory is not None]
        await self._log.append(*fresh)
        self._busy_s += time.monotonic() - started

        by_event = {**self._logged, **{trajectory.dispatch.event: trajectory for trajectory in fresh}}
        self._logged = {}
        return [by_event[request.dispatch.event] for request in requests if request.dispatch.event in by_event]
