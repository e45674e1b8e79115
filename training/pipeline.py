"""Where batches come from: episodes in flight, group-free (SPO, arXiv 2509.13232, Sec. 5.4).

`Streams` keeps N episodes in flight, each its own; a batch is the first B to finish, or the first to bring T action
tokens. Stragglers go on across weight updates: their tokens carry the version that sampled them, and one whose oldest
token is more than `max_staleness` versions old is dropped or run again. At most N episodes are outstanding (in flight,
or finished and not yet taken), which bounds how far rollouts run ahead of learning.

`Rounds` waits for every episode of a batch before the learner moves: the seeded mode that is bit-reproducible on CPU.

Both write a trajectory to the log before it counts as finished, so that `resume` loses none and trains on none twice:
a checkpoint names the next event and what was outstanding; whatever the log holds beyond that is finished and unused.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from agent.engine import EngineError
from agent.trajectory import Dispatch, Trajectory
from sandbox.errors import SandboxError
from training.log import TrajectoryLog


@dataclass(frozen=True, slots=True)
class Ticket:
    """One episode to run. `dispatch` is frozen here; `seed` makes the episode's sampling repeatable."""

    task_id: str
    seed: int
    dispatch: Dispatch

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Ticket:
        return cls(record["task_id"], record["seed"], Dispatch(**record["dispatch"]))


Play = Callable[[Ticket], Awaitable[Trajectory]]


@dataclass(frozen=True, slots=True)
class Source:
    """What a pipeline is made of.

    draw: new tickets, one or a whole group, with fresh events, values and the current version.
    again: a fresh ticket for the task of an old one.
    play: runs an episode. Raises SandboxError or EngineError, or ends it as "infra", when the infrastructure failed.
    """

    draw: Callable[[], Sequence[Ticket]]
    again: Callable[[Ticket], Ticket]
    play: Play
    retries: int


class Effort:
    """Runs episodes against failing infrastructure: bounded retries, every failure counted, none becomes a reward."""

    def __init__(self, play: Play, *, retries: int, patience: int) -> None:
        """patience: so many episodes given up in a row end the run."""
        self._play, self._retries, self._patience = play, retries, patience
        self._dropped_in_a_row = 0
        self.counts: Counter[str] = Counter()

    async def run(self, ticket: Ticket) -> Trajectory | None:
        """The finished episode; None when it was given up. Raises when nothing works any more."""
        for _ in range(self._retries + 1):
            try:
                trajectory = await self._play(ticket)
            except (SandboxError, EngineError) as error:
                failure: SandboxError | EngineError = error
                self.counts["engine_failures"] += isinstance(error, EngineError)
            else:
                if trajectory.ending != "infra":
                    self._dropped_in_a_row = 0
                    return trajectory
                failure = SandboxError(f"the episode of {ticket.task_id} ended in an infrastructure failure")
            self.counts["infra_failures"] += 1
        self.counts["infra_dropped"] += 1
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= self._patience:
            raise type(failure)(f"{self._dropped_in_a_row} episodes in a row were given up; the last: {failure}")
        return None


class Streams:
    """Continuous and group-free, unless tickets carry groups: then a batch is the first groups that are complete.

    batch: trajectories; tokens: when set, action tokens instead; in_flight: N above.
    """

    def __init__(
        self,
        source: Source,
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
        self._effort = Effort(source.play, retries=source.retries, patience=self._limit)
        self._flying: dict[int, tuple[Ticket, asyncio.Task[None]]] = {}
        self._landed: dict[int, tuple[Ticket, Trajectory]] = {}  # by event, in order of arrival
        self._queued: list[Ticket] = []
        self._changed = asyncio.Event()
        self._finished = False
        self._failure: BaseException | None = None
        self._busy_since, self._busy_s = 0.0, 0.0
        self.version = 0

    @property
    def counts(self) -> Counter[str]:
        """Since the start: infra_failures, infra_dropped, engine_failures, stale."""
        return self._effort.counts

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
        for ticket, task in list(self._flying.values()):
            if version - ticket.dispatch.version > self._max_staleness:
                task.cancel()
                self._leave(ticket)
                self._outdate(ticket)
        for ticket, trajectory in list(self._landed.values()):
            if version - oldest_version(trajectory) > self._max_staleness:
                del self._landed[ticket.dispatch.event]
                self._outdate(ticket)

    def state_dict(self) -> dict[str, Any]:
        """Every outstanding ticket; what of them is finished stands in the log."""
        tickets = [t for t, _ in self._flying.values()] + [t for t, _ in self._landed.values()] + self._queued
        return {"outstanding": [t.to_dict() for t in tickets]}

    def restore(self, state: Mapping[str, Any], finished: Iterable[Trajectory]) -> None:
        """`finished`: the log's trajectories that no checkpointed step has used (`unused`)."""
        self._landed = {t.dispatch.event: (Ticket(t.task_id, t.seed, t.dispatch), t) for t in finished}
        tickets = map(Ticket.from_dict, state["outstanding"])
        self._queued = [t for t in tickets if t.dispatch.event not in self._landed]

    def finish(self) -> None:
        """No batch will be taken any more: stop what is in flight, and remember it for a run that goes on."""
        self._finished = True
        for ticket, task in list(self._flying.values()):
            task.cancel()
            self._leave(ticket)
            self._queued.append(ticket)

    async def close(self) -> None:
        tasks = [task for _, task in self._flying.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        while not self._finished and (len(self._flying) + len(self._landed) < self._limit or self._starved()):
            if not self._queued:
                self._queued.extend(self._source.draw())
            ticket = self._queued.pop(0)
            if not self._flying:
                self._busy_since = time.monotonic()
            self._flying[ticket.dispatch.event] = ticket, asyncio.create_task(self._run(ticket))

    def _starved(self) -> bool:
        """Everything has landed and still makes no batch (a token budget, a group that is cut off): go beyond N."""
        return not self._flying and self._chosen() is None

    async def _run(self, ticket: Ticket) -> None:
        try:
            trajectory = await self._effort.run(ticket)
            if trajectory is not None:
                await self._log.append(trajectory)
                self._landed[ticket.dispatch.event] = ticket, trajectory
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._leave(ticket)
            self._changed.set()

    def _leave(self, ticket: Ticket) -> None:
        """Idempotent: an episode that was given up leaves before its task has noticed."""
        if self._flying.pop(ticket.dispatch.event, None) and not self._flying:
            self._busy_s += time.monotonic() - self._busy_since

    def _outdate(self, ticket: Ticket) -> None:
        self.counts["stale"] += 1
        if self._stale == "redispatch":
            self._queued.append(self._source.again(ticket))

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
        for event, (ticket, _) in self._landed.items():
            group = ticket.dispatch.group
            if group is None:
                order.append([event])
            elif group not in open_groups:
                known = members.pop(group, [])
                if known:
                    order.remove(known)
                members[group] = [*known, event]
                order.append(members[group])
        return order


class Rounds:
    """A batch at a time; the learner waits for the rollouts and they for it."""

    def __init__(self, source: Source, log: TrajectoryLog, *, batch: int) -> None:
        self._source, self._log, self._batch = source, log, batch
        self._effort = Effort(source.play, retries=source.retries, patience=batch)
        self._open: list[Ticket] = []  # of the round that runs now
        self._episodes: asyncio.Future[list[Trajectory | None]] | None = None
        self._busy_s = 0.0
        self.version = 0

    @property
    def counts(self) -> Counter[str]:
        return self._effort.counts

    @property
    def busy_s(self) -> float:
        return self._busy_s

    async def take(self) -> list[Trajectory]:
        """A batch in the order of dispatch, logged. Episodes given up are missing."""
        started = time.monotonic()
        while len(self._open) < self._batch:
            self._open.extend(self._source.draw())
        self._episodes = asyncio.gather(*map(self._effort.run, self._open))
        batch = [trajectory for trajectory in await self._episodes if trajectory is not None]
        await self._log.append(*batch)
        self._open = []
        self._busy_s += time.monotonic() - started
        return batch

    def advance(self, version: int) -> None:
        self.version = version

    def finish(self) -> None:
        """Nothing runs between rounds."""

    def state_dict(self) -> dict[str, Any]:
        """The tickets of an unfinished round: all of it runs again."""
        return {"outstanding": [t.to_dict() for t in self._open]}

    def restore(self, state: Mapping[str, Any], finished: Iterable[Trajectory]) -> None:
        self._open = [Ticket.from_dict(record) for record in state["outstanding"]]

    async def close(self) -> None:
        if self._episodes is not None:
            self._episodes.cancel()
            await asyncio.gather(self._episodes, return_exceptions=True)


def unused(logged: Iterable[Trajectory], next_event: int, state: Mapping[str, Any]) -> list[Trajectory]:
    """The trajectories of the log that no step up to the checkpoint has used: outstanding then, or dispatched since.

    Without those whose reward is not finite: they stopped the run before, and would stop it again.
    """
    outstanding = {record["dispatch"]["event"] for record in state["outstanding"]}
    wanted = lambda event: event >= next_event or event in outstanding
    return list({t.dispatch.event: t for t in logged if wanted(t.dispatch.event) and math.isfinite(t.reward)}.values())


def oldest_version(trajectory: Trajectory) -> int:
    """The policy version of its oldest sampled token; that of its dispatch when it sampled none."""
    sampled = trajectory.versions[trajectory.action_mask]
    return int(sampled.min()) if len(sampled) else trajectory.dispatch.version
