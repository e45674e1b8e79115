"""The asynchronous collector: episodes in flight, group-free (SPO, arXiv 2509.13232, Sec. 5.4).

It keeps N episodes in flight, each its own; a batch is the first B to finish, or the first to bring T action
tokens. Stragglers go on across weight updates: their tokens carry the version that sampled them, and one whose oldest
token is more than `max_staleness` versions old is dropped or run again. At most N episodes are outstanding (in flight,
or finished and not yet taken), which bounds how far rollouts run ahead of learning.

A trajectory is written to the log before it counts as finished, so that `resume` loses none and trains on none twice:
a checkpoint names the next event and what was outstanding; whatever the log holds beyond that is finished and unused.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.training.batch import fault
from solostream.training.rollouts.request import PromptSource, RolloutRequest
from solostream.training.rollouts.retry import RetryPolicy


class AsyncCollector:
    """Continuous and group-free, unless requests carry groups: then a batch is the first groups that are complete.

    batch: trajectories; tokens: when set, action tokens instead; in_flight: N above.
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
    ) -> None:
        self._source, self._log = source, log
        self._batch, self._tokens, self._limit = batch, tokens, max(in_flight, batch)
        self._max_staleness, self._stale = max_staleness, stale
        self._retry = RetryPolicy(source.play, retries=source.retries, patience=self._limit)
        self._flying: dict[int, tuple[RolloutRequest, asyncio.Task[None]]] = {}
        self._landed: dict[int, tuple[RolloutRequest, Trajectory]] = {}  # by event, in order of arrival
        self._queued: list[RolloutRequest] = []
        self._changed = asyncio.Event()
        self._finished = False
        self._failure: BaseException | None = None
        self._busy_since, self._busy_s = 0.0, 0.0
        self.version = 0

    @property
    def counts(self) -> Counter[str]:
        """Since the start: infra_failures, infra_dropped, engine_failures, stale."""
        return self._retry.counts

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one episode was in flight."""
        return self._busy_s + (time.monotonic() - self._busy_since if self._flying else 0.0)

    async def take(self) -> list[Trajectory]:
        """The next batch, as soon as it is there; the free places are filled before it is returned."""
        while True:
            if self._failure:
                raise self._failure
            self._fill()
            chosen = self._chosen()
            if chosen is not None:
                break
            self._changed.clear()
            await self._changed.wait()
        batch = [self._landed.pop(event)[1] for event in chosen]
        self._fill()
        return batch

    def advance(self, version: int) -> None:
        """The policy is now `version`: give up what has become too old, in flight and landed."""
        self.version = version
        for request, task in list(self._flying.values()):
            if version - request.dispatch.version > self._max_staleness:
                task.cancel()
                self._leave(request)
                self._outdate(request)
        for request, trajectory in list(self._landed.values()):
            if version - oldest_version(trajectory) > self._max_staleness:
                del self._landed[request.dispatch.event]
                self._outdate(request)

    def state_dict(self) -> dict[str, Any]:
        """Every outstanding request; what of them is finished stands in the log."""
        requests = [t for t, _ in self._flying.values()] + [t for t, _ in self._landed.values()] + self._queued
        return {"outstanding": [t.to_dict() for t in requests]}

    def restore(self, state: Mapping[str, Any], finished: Iterable[Trajectory]) -> None:
        """`finished`: the log's trajectories that no checkpointed step has used (`unused`)."""
        self._landed = {t.dispatch.event: (RolloutRequest(t.task_id, t.seed, t.dispatch), t) for t in finished}
        requests = map(RolloutRequest.from_dict, state["outstanding"])
        self._queued = [t for t in requests if t.dispatch.event not in self._landed]

    def finish(self) -> None:
        """No batch will be taken any more: stop what is in flight, and remember it for a run that goes on."""
        self._finished = True
        for request, task in list(self._flying.values()):
            task.cancel()
            self._leave(request)
            self._queued.append(request)

    async def close(self) -> None:
        tasks = [task for _, task in self._flying.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        while not self._finished and (len(self._flying) + len(self._landed) < self._limit or self._starved()):
            if not self._queued:
                self._queued.extend(self._source.draw())
            request = self._queued.pop(0)
            if not self._flying:
                self._busy_since = time.monotonic()
            self._flying[request.dispatch.event] = request, asyncio.create_task(self._run(request))

    def _starved(self) -> bool:
        """Everything has landed and still makes no batch (a token budget, a group that is cut off): go beyond N."""
        return not self._flying and self._chosen() is None

    async def _run(self, request: RolloutRequest) -> None:
        try:
            trajectory = await self._retry.run(request)
            if trajectory is not None:
                await self._log.append(trajectory)
                self._landed[request.dispatch.event] = request, trajectory
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._leave(request)
            self._changed.set()

    def _leave(self, request: RolloutRequest) -> None:
        """Idempotent: an episode that was given up leaves before its task has noticed."""
        if self._flying.pop(request.dispatch.event, None) and not self._flying:
            self._busy_s += time.monotonic() - self._busy_since

    def _outdate(self, request: RolloutRequest) -> None:
        self.counts["stale"] += 1
        if self._stale == "redispatch":
            self._queued.append(self._source.again(request))

    def _chosen(self) -> list[int] | None:
        """Events of the next batch, None while it is not complete. No group is cut: one may bring more than is left."""
        chosen: list[int] = []
        found = 0
        for events in self._whole_groups():
            chosen += events
            found += sum(self._landed[e][1].n_action_tokens for e in events) if self._tokens else len(events)
            if found >= (self._tokens or self._batch):
                return chosen
        return None

    def _whole_groups(self) -> list[list[int]]:
        """Landed events in order of arrival; a group, less what was given up, stands where its last member arrived."""
        open_groups = {t.dispatch.group for t, _ in self._flying.values()} | {t.dispatch.group for t in self._queued}
        members: dict[int, list[int]] = {}
        order: list[list[int]] = []
        for event, (request, _) in self._landed.items():
            group = request.dispatch.group
            if group is None:
                order.append([event])
            elif group not in open_groups:
                known = members.pop(group, [])
                if known:
                    order.remove(known)
                members[group] = [*known, event]
                order.append(members[group])
        return order


def unused(logged: Iterable[Trajectory], next_event: int, state: Mapping[str, Any]) -> list[Trajectory]:
    """The trajectories of the log that no step up to the checkpoint has used: outstanding then, or dispatched since.

    Without those that fit no batch: they stopped the run before, and would stop it again.
    """
    outstanding = {record["dispatch"]["event"] for record in state["outstanding"]}
    wanted = lambda event: event >= next_event or event in outstanding
    return list({t.dispatch.event: t for t in logged if wanted(t.dispatch.event) and fault(t) is None}.values())


def oldest_version(trajectory: Trajectory) -> int:
    """The policy version of its oldest sampled token; that of its dispatch when it sampled none."""
    sampled = trajectory.versions[trajectory.action_mask]
    return int(sampled.min()) if len(sampled) else trajectory.dispatch.version
