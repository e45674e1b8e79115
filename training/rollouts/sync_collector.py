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
from itertools import groupby
from typing import Any

from solostream.agent.exploration.tree import gathered, leaves_of, tree_event
from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.training.rollouts.dynamic_sampling import DynamicSampling
from solostream.training.rollouts.request import Finished, PromptSource, RolloutRequest
from solostream.training.rollouts.retry import RetryPolicy


class SyncCollector:
    """A batch of `batch` trajectories at a time. overlap: the next one is sampled while the learner has this one.

    dynamic: which groups are left out; others are played in their place, before the batch is complete.
    """

    def __init__(
        self,
        source: PromptSource,
        log: TrajectoryLog,
        *,
        batch: int,
        overlap: bool = False,
        dynamic: DynamicSampling | None = None,
    ) -> None:
        self._source = source
        self._log = log
        self._batch = batch
        self._overlap = overlap
        self._dynamic = dynamic
        self._retry = RetryPolicy(source.play, retries=source.retries, patience=batch)

        self._open: list[RolloutRequest] = []  # of the batch that is sampled, or waits to be taken
        self._sampling: asyncio.Task[tuple[list[Trajectory], list[Trajectory]]] | None = None  # (batch, left out)
        self._logged: dict[int, Finished] = {}  # event -> what a resumed run has of its first batch already
        self._busy_s = 0.0
        self.version = 0

    @property
    def counts(self) -> Counter[str]:
        """Since the start: failures by name, uninformative and its tokens."""
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
            batch, left_out = await self._sampling
        finally:
            self._sampling = None
        # The batch is closed only once all of it is on disk: until then a checkpoint asks for it again.
        self._open = []
        if self._dynamic is not None:
            self._dynamic.taken()
            self._source.discarded(left_out)
            self.counts["uninformative"] += len(left_out)
            self.counts["uninformative_tokens"] += sum(trajectory.n_action_tokens for trajectory in left_out)
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
        self._logged = _by_event(gathered(finished))

    async def close(self) -> None:
        """Cancel the batch on its way and wait for it."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.gather(self._sampling, return_exceptions=True)

    def _begin(self) -> None:
        """Send out a whole batch. After a resume the requests of the unfinished one are there already."""
        self._draw(self._batch)
        self._sampling = asyncio.create_task(self._sample())

    def _draw(self, wanted: int) -> None:
        while len(self._open) * self._source.leaves < wanted:
            self._open.extend(self._source.draw())

    async def _sample(self) -> tuple[list[Trajectory], list[Trajectory]]:
        """(the batch, what dynamic sampling left out of it), both in the order of dispatch."""
        started = time.monotonic()
        finished: list[Trajectory] = []
        left_out: list[Trajectory] = []
        done = 0
        while done < len(self._open):
            requests, done = self._open[done:], len(self._open)
            found = await self._play(requests)
            finished += found
            left_out += self._uninformative(found)
            # As many again as were left out; what the infrastructure lost stays missing.
            self._draw(self._batch + len(left_out))
        await self._log.append(*(trajectory for trajectory in finished if tree_event(trajectory) not in self._logged))
        self._logged = {}
        self._busy_s += time.monotonic() - started
        others = {trajectory.dispatch.event for trajectory in left_out}
        return [trajectory for trajectory in finished if trajectory.dispatch.event not in others], left_out

    def _uninformative(self, found: list[Trajectory]) -> list[Trajectory]:
        """The groups among them that dynamic sampling leaves out, judged in the order of dispatch."""
        if self._dynamic is None:
            return []
        groups = [list(members) for _, members in groupby(found, key=lambda trajectory: trajectory.dispatch.group)]
        return [trajectory for group in groups if self._dynamic.discards(group) for trajectory in group]

    async def _play(self, requests: list[RolloutRequest]) -> list[Trajectory]:
        # What the log of a resumed run holds was sampled under these very weights, and is not sampled again.
        missing = [request for request in requests if request.dispatch.event not in self._logged]
        # `gather` keeps the order of the requests, whichever episode ends first: that is what makes it reproducible.
        played = await asyncio.gather(*map(self._retry.run, missing))
        fresh = [one for one in played if one is not None]
        by_event = {**self._logged, **_by_event(fresh)}
        taken = (by_event[request.dispatch.event] for request in requests if request.dispatch.event in by_event)
        return [leaf for one in taken for leaf in leaves_of(one)]


def _by_event(played: Iterable[Finished]) -> dict[int, Finished]:
    """Request's event -> what it brought."""
    return {leaves_of(one)[0].dispatch.event: one for one in played}
