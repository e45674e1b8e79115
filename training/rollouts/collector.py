"""The asynchronous collector: episodes in flight, group-free (SPO, arXiv 2509.13232, Sec. 5.4).

It keeps N episodes in flight, each its own; a batch is the first B to finish, or the first to bring T action
tokens. Stragglers go on across weight updates: their tokens carry the version that sampled them, and one whose oldest
token is more than `max_staleness` versions old is dropped or run again. At most N episodes are outstanding (in flight,
or finished and not yet taken), which bounds how far rollouts run ahead of learning.

What one episode costs here does not grow with N: `landed` keeps running sums, and nothing walks all episodes but
`advance`, once a step. `python benchmarks/collector.py` prints the driver's CPU an episode.

A trajectory is written to the log before it counts as finished, so that `resume` loses none and trains on none twice:
a checkpoint names the next event and what was outstanding; whatever the log holds beyond that is finished and unused.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from solostream.agent.exploration.tree import gathered, leaves_of, sampled_once, tree_event
from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.training.batch import fault
from solostream.training.rollouts.dynamic_sampling import DynamicSampling
from solostream.training.rollouts.landed import Landed
from solostream.training.rollouts.request import Finished, PromptSource, RolloutRequest
from solostream.training.rollouts.retry import RetryPolicy


class AsyncCollector:
    """Continuous and group-free, unless requests carry groups: then a batch is the first groups that are complete.

    batch: trajectories; tokens: when set, action tokens instead; in_flight: N above. dynamic: groups to leave out.
    """

    def __init__(
        self,
        source: PromptSource,
        log: TrajectoryLog,
        *,
        batch: int,
        tokens: int = 0,
        in_flight: int,
        max_staleness: int,
        stale: Literal["drop", "redispatch"] = "drop",
        dynamic: DynamicSampling | None = None,
    ) -> None:
        self._source = source
        self._log = log
        # Fewer than a batch in flight could never fill one. A request counts as many episodes as it brings leaves.
        self._limit = math.ceil(max(in_flight, batch) / source.leaves)
        self._max_staleness = max_staleness
        self._stale = stale
        self._retry = RetryPolicy(source.play, retries=source.retries, patience=self._limit)

        # Where a request is: drawn, running, or finished and not yet taken.
        self._queued: deque[RolloutRequest] = deque()
        self._flying: dict[int, tuple[RolloutRequest, asyncio.Task[None]]] = {}  # by event
        self._dynamic = dynamic
        discards = self._discards if dynamic else None
        # A batch is so many trajectories, or so many action tokens.
        if tokens:
            self._landed = Landed(tokens, _action_tokens, discards)
        else:
            self._landed = Landed(batch, _one, discards)

        # What `take` waits for, and what ends it.
        self._changed = asyncio.Event()  # something landed or was given up since it last looked
        self._finished = False
        self._failure: BaseException | None = None

        # How long anything has been in flight.
        self._busy_since = 0.0  # when the first of those in flight started
        self._busy_s = 0.0  # of the times before that
        self.version = 0

    @property
    def counts(self) -> Counter[str]:
        """Since the start: failures by name, stale, uninformative and its tokens."""
        return self._retry.counts

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one episode was in flight."""
        running = time.monotonic() - self._busy_since if self._flying else 0.0
        return self._busy_s + running

    async def take(self) -> list[Trajectory]:
        """The next batch, as soon as it is there; the free places are filled before it is returned."""
        while True:
            # An episode that failed for good ends the run here, where somebody waits for it.
            if self._failure:
                raise self._failure
            # Places that a batch or a dropped episode left free are filled before anybody waits.
            self._fill()
            batch = self._landed.take()
            if batch is not None:
                if self._dynamic:
                    self._dynamic.taken()
                # The learner will be busy with it: what it took away is on its way again before that.
                self._fill()
                return batch
            # Cleared before the wait and after the look, with nothing awaited between: no landing is missed.
            self._changed.clear()
            await self._changed.wait()

    async def settle(self) -> None:
        """New weights need not wait: every token carries the version that sampled it."""

    def advance(self, version: int) -> None:
        """The policy is now `version`: give up what has become too old, in flight and landed."""
        self.version = version
        # An episode in flight has sampled nothing older than the version of its dispatch.
        for request, task in list(self._flying.values()):
            age = version - request.dispatch.version
            if age > self._max_staleness:
                task.cancel()
                self._leave(request)
                self._landed.give_up(request)
                self._outdate(request)
        # A landed one is as old as its oldest token: it may have outlived several updates.
        for request, played in list(self._landed):
            age = version - min(map(oldest_version, leaves_of(played)))
            if age > self._max_staleness:
                self._landed.remove(request)
                self._outdate(request)

    def state_dict(self) -> dict[str, Any]:
        """Every outstanding request; what of them is finished stands in the log."""
        # Each request is in one of the three, and what has landed stands in the log already.
        in_flight = [request for request, _ in self._flying.values()]
        landed = [request for request, _ in self._landed]
        every = (*in_flight, *landed, *self._queued)
        state: dict[str, Any] = {"outstanding": [request.to_dict() for request in every]}
        if self._dynamic:
            state["discarded"] = self._dynamic.discarded
        return state

    def restore(self, state: Mapping[str, Any], finished: Iterable[Trajectory]) -> None:
        """`finished`: the log's trajectories that no checkpointed step has used (`unused`)."""
        # Leaves of a tree are one request: the log has them as trajectories of their own.
        landed = []
        for played in gathered(finished):
            first = leaves_of(played)[0]
            request = RolloutRequest(first.task_id, first.seed, first.dispatch)
            landed.append((request, played))
        done = {request.dispatch.event for request, _ in landed}
        outstanding = [RolloutRequest.from_dict(record) for record in state["outstanding"]]
        if self._dynamic:
            self._dynamic.discarded = state["discarded"]

        # All are expected before the first lands: a group must not look complete while some of it is still to come.
        for request, _ in landed:
            self._landed.expect(request)
        # What was on its way runs again, before anything is drawn; its group waits for it.
        for request in outstanding:
            if request.dispatch.event not in done:
                self._enqueue(request)
        # Now each group completes as if its members had just arrived.
        for request, played in landed:
            self._landed.land(request, played)

    def finish(self) -> None:
        """No batch will be taken any more: stop what is in flight, and remember it for a run that goes on."""
        self._finished = True
        # Not lost: a run that is made longer later plays them, under the same seeds. `state_dict` names them.
        for request, task in list(self._flying.values()):
            task.cancel()
            self._leave(request)
            self._queued.append(request)

    async def close(self) -> None:
        """Cancel the episodes that are under way; afterwards nothing of this collector runs any more."""
        tasks = [task for _, task in self._flying.values()]
        for task in tasks:
            task.cancel()
        # Waited for, because an episode that is cancelled still gives its sandbox back.
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        """Put episodes in flight until N are outstanding."""
        while not self._finished and (self._has_room() or self._starved()):
            # What is queued was drawn before: by the run that this one resumes, or for a task that is run again.
            if not self._queued:
                for drawn in self._source.draw():
                    self._enqueue(drawn)
            request = self._queued.popleft()
            # The clock of `busy_s` runs from the first departure to the last arrival.
            if not self._flying:
                self._busy_since = time.monotonic()
            task = asyncio.create_task(self._run(request))
            # Kept here as well, because asyncio itself holds a task by a weak reference only.
            self._flying[request.dispatch.event] = request, task

    def _has_room(self) -> bool:
        # What has landed takes a place too, so that rollouts do not run ahead of a learner that is slower than they.
        return len(self._flying) + len(self._landed) < self._limit

    def _starved(self) -> bool:
        """Everything has landed and still makes no batch (a token budget, a group that is cut off): go beyond N."""
        return not self._flying and not self._landed.ready

    def _discards(self, group: Sequence[Trajectory]) -> bool:
        assert self._dynamic is not None
        # A group whose rewards are all alike has advantages of 0: the next one takes its place in the batch.
        if not self._dynamic.discards(group):
            return False
        # The sampler hears of it, and the metrics: what was played for nothing is not to be overlooked.
        self._source.discarded(group)
        self.counts["uninformative"] += len(group)
        self.counts["uninformative_tokens"] += sum(map(_action_tokens, group))
        return True

    def _enqueue(self, request: RolloutRequest) -> None:
        self._queued.append(request)
        # From now on, and not from its start: a group waits for members that are still in the queue.
        self._landed.expect(request)

    async def _run(self, request: RolloutRequest) -> None:
        """One episode, from its departure to the log and the landed."""
        try:
            played = await self._retry.run(request)
            if played is None:
                self._landed.give_up(request)
            else:
                # First on disk, then available: a checkpoint never knows of an episode that a crash could lose.
                await self._log.append(*leaves_of(played))
                self._landed.land(request, played)
        # Raised by `take`, where the run can end with it: nobody awaits this task.
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._leave(request)
            self._changed.set()

    def _leave(self, request: RolloutRequest) -> None:
        """Idempotent: an episode that was given up leaves before its task has noticed."""
        was_there = self._flying.pop(request.dispatch.event, None)
        # The last one is here: nothing is in flight until the next departure.
        if was_there and not self._flying:
            self._busy_s += time.monotonic() - self._busy_since

    def _outdate(self, request: RolloutRequest) -> None:
        """Too old to be learnt from: counted, and with "redispatch" its task is run again under the policy of now."""
        self.counts["stale"] += 1
        if self._stale == "redispatch":
            self._enqueue(self._source.again(request))


def unused(logged: Iterable[Trajectory], next_event: int, state: Mapping[str, Any]) -> list[Trajectory]:
    """The trajectories of the log that no step up to the checkpoint has used: outstanding then, or dispatched since.

    Without those that fit no batch: they stopped the run before, and would stop it again. A tree is there as a whole or
    not at all: one that lacks a leaf is played again.
    """
    outstanding = {record["dispatch"]["event"] for record in state["outstanding"]}

    def wanted(trajectory: Trajectory) -> bool:
        event = trajectory.dispatch.event
        asked = event >= next_event or tree_event(trajectory) in outstanding
        return asked and fault(trajectory) is None

    # By event: a run that was cut off twice may have logged an episode twice, and the later one counts.
    by_event = {trajectory.dispatch.event: trajectory for trajectory in logged if wanted(trajectory)}
    return [leaf for played in gathered(by_event.values()) for leaf in leaves_of(played)]


def oldest_version(trajectory: Trajectory) -> int:
    """The policy version of its oldest sampled token; that of its dispatch when it sampled none."""
    sampled = trajectory.versions[trajectory.action_mask]
    return int(sampled.min()) if len(sampled) else trajectory.dispatch.version


def _one(played: Finished) -> int:
    """What an episode or tree counts in a batch of trajectories."""
    return len(leaves_of(played))


def _action_tokens(played: Finished) -> int:
    """What it counts in a batch of tokens: those that leaves share once."""
    return sampled_once(leaves_of(played))
