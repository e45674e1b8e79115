"""Reinforcement learning: batches from the pipeline, advantages, one update, new weights for the sampler.

A request freezes its event, the tracker's value and the policy version when it is drawn (SPO++, arXiv 2608.24870).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from solostream.agent.engine import Engine, Sampling
from solostream.agent.rollout import seed_of
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.envs.data import Tasks
from solostream.evaluation.own_metrics import Metric, measured
from solostream.training.advantages import grouped, tracker_of
from solostream.training.advantages.base import Advantage, Advantages
from solostream.training.advantages.tree.evidence import observations
from solostream.training.batch import Batch, UnfitBatch, dump
from solostream.training.cluster.ranks import Ranks
from solostream.training.config import Config
from solostream.training.learner.corrections import kept
from solostream.training.learner.learner import Learner
from solostream.training.learner.packing import MaskedTokens
from solostream.training.learner.streaming import StreamedUpdate
from solostream.training.rollouts.collector import AsyncCollector, unused
from solostream.training.rollouts.dynamic_sampling import DynamicSampling
from solostream.training.rollouts.env_pool import Plays
from solostream.training.rollouts.request import Finished, PromptSource, RolloutRequest
from solostream.training.rollouts.retry import RetryPolicy
from solostream.training.rollouts.samplers.history import Outcome
from solostream.training.rollouts.samplers.inner import sampler_of_run
from solostream.training.rollouts.sync_collector import SyncCollector
from solostream.training.rollouts.task_sampler import Sampler, TaskSampler
from solostream.training.rollouts.turns import Turns
from solostream.training.run import metrics
from solostream.training.sft.trace_set import TraceSet

COUNTED = ("infra_failures", "infra_dropped", "reward_failures", "engine_failures", "stale")
DISCARDED = ("uninformative", "uninformative_tokens")  # by dynamic sampling
LARGE_MISMATCH = 0.01  # nats: largest |Δ log p| of sampler and learner on a token of one policy; float32 stays below
InThread = Callable[..., Awaitable[Any]]  # runs a function in the learner's thread


class Discarded(NamedTuple):
    """What a tracker learns from a trajectory that dynamic sampling left out."""

    task_id: str
    reward: float
    event: int
    version: int


class Reinforcement:
    """The state of this phase. `step` counts finished updates and is the policy's version."""

    def __init__(
        self,
        config: Config,
        tasks: Tasks,
        learner: Learner | Ranks,
        engine: Engine,
        episodes: Plays,
        log: TrajectoryLog,
        in_thread: InThread,
        *,
        advantage: Advantage | None = None,
        sampler: Sampler | None = None,
        own_metrics: Mapping[str, Metric] = MappingProxyType({}),
        traces: TraceSet | None = None,
    ) -> None:
        """tasks: the pool. advantage, sampler: instead of what the configuration names. traces: what is imitated."""
        self.config, self.task_ids = config, [task.id for task in tasks]
        self._learner, self._engine, self._episodes, self._in_thread = learner, engine, episodes, in_thread
        self._turns = Turns(engine, in_thread, lent=config.rollout.colocate == "turns")
        a = config.algorithm
        self.tracker = (tracker_of(advantage) if advantage else None) or a.tracker.make()
        for task in tasks:
            self.tracker.place(task.id, task.source, task.level)
        self._uses_tracker = a.uses_tracker if advantage is None else tracker_of(advantage) is not None
        if sampler is None:
            sampler = sampler_of_run(config, tasks, self.tracker, uses_tracker=self._uses_tracker)
        of_learner = learner.logprobs, learner.entropies
        self._advantage = advantage or a.estimator(self.tracker, *of_learner, sampler)[-1]
        self._grouped = grouped(self._advantage, a.group_size)
        self._own_metrics, self._traces = own_metrics, traces
        self._streamed: StreamedUpdate | None = None  # of the batch that is being taken
        self._before: dict[str, Any] = {}  # what its parts change, as it was before them
        if config.rollout.learn_in_parts > 1:
            assert isinstance(learner, Learner), "the configuration refuses parts on several ranks"
        self._sampler = TaskSampler(self.task_ids, sampler, streams=a.group_size)
        self.step, self.mismatch_max = 0, 0.0
        self._warned = False
        self._event = 0
        self._counted: Counter[str] = Counter()
        self._log = log
        self._discarded: list[Discarded] = []  # by dynamic sampling, since the last update
        self._source = PromptSource(
            self._draw, self._again, self._grow, config.rollout.retries, self._discard, episodes.leaves
        )
        self.pipeline = _pipeline(config, self._source, log)

    @property
    def n_starts(self) -> int:
        """Episodes of `start`."""
        a = self.config.algorithm
        return len(self.task_ids) * a.tracker.start_samples if self._uses_tracker else 0

    async def start(self, advance: Callable[[], None]) -> None:
        """Initialise the tracker from the initial policy, under the training sampling parameters (SPO, App. A)."""
        retry = RetryPolicy(self._play, retries=self._source.retries, patience=len(self.task_ids))

        async def one(task_id: str, sample: int) -> Trajectory | None:
            seed = seed_of(self.config.run.seed, "start", task_id, sample)
            trajectory = await retry.run(RolloutRequest(task_id, seed, Dispatch()))
            advance()
            return trajectory

        samples = range(self.config.algorithm.tracker.start_samples)
        played = await asyncio.gather(*(one(task_id, i) for task_id in self.task_ids for i in samples))
        found = self._batch([trajectory for trajectory in played if trajectory is not None])
        outcomes: dict[str, list[float]] = {task_id: [] for task_id in self.task_ids}
        for trajectory in found:
            outcomes[trajectory.task_id].append(trajectory.reward)
        for task_id, rewards in outcomes.items():
            self.tracker.initialize(task_id, rewards, version=0)

    async def take(self) -> list[Trajectory]:
        """The next batch; where `rollout.learn_in_parts` says so, all but the last part of its update is then done."""
        parts = self.config.rollout.learn_in_parts
        if parts == 1:
            return await self.pipeline.take()
        self._before = {"advantage": self._advantage.state_dict(), "tracker": self.tracker.state_dict()}
        assert isinstance(self._learner, Learner)
        streamed = StreamedUpdate(self._learner, self._advantage, self.config.rollout.batch)
        self._streamed, taken = streamed, list[Trajectory]()
        for _ in range(parts):
            part = await self.pipeline.take()
            taken += part
            self._before["taken"] = [RolloutRequest(t.task_id, t.seed, t.dispatch).to_dict() for t in taken]
            await self._in_thread(streamed.add, self._batch(part))
        return taken

    async def learn(self, taken: Sequence[Trajectory]) -> dict[str, float | int | None]:
        """One update from what was `taken`, then the new weights go to the sampler. Returns the step's metrics.

        Raises UnfitBatch and NotFinite, with the batch dumped; the step is not taken. At NotFinite the estimator has
        learnt from the batch; no checkpoint knows of it, for the run ends there.
        """
        started = time.monotonic()
        unused_groups, self._discarded = self._discarded, []
        if self._streamed is None:
            batch = self._batch(taken)
            update = self._update, batch, unused_groups
            advantages, numbers = await self._turns.run(self._learner, self.step, *update)
        else:
            finish = partial(self._streamed.finish, self.step, drift=self._uses_tracker)
            batch, advantages, numbers = await self._in_thread(finish)
            await self._in_thread(self._observe, unused_groups)
            self._streamed, self._before = None, {}
        learn_s = time.monotonic() - started
        self.step += 1
        await self._log.update(self.step, batch, advantages.values)
        if "drift" in numbers:
            self.tracker.record_drift(self.step, numbers["drift"])
        waiting = time.monotonic()
        await self.pipeline.settle()
        wait_s = time.monotonic() - waiting
        weights = await self._in_thread(self._learner.weights)
        await self._engine.load_weights(weights, self.step)
        self.pipeline.advance(self.step)
        self.mismatch_max = max(self.mismatch_max, numbers.get("mismatch/on_policy_max", 0.0))
        now = self.pipeline.counts
        updated = (Outcome(t.task_id, t.reward, _size(a)) for t, a in zip(batch, advantages.values, strict=True))
        outcomes = chain((Outcome(one.task_id, one.reward, 0.0) for one in unused_groups), updated)
        found = {
            **metrics.of_batch(batch, self.step - 1),
            **metrics.calibration(batch),
            **{name if "/" in name else f"learner/{name}": value for name, value in numbers.items()},
            **advantages.metrics,
            **measured(self._own_metrics, batch),
            **self._sampler.learn(outcomes),
            **metrics.changes(now, self._counted, COUNTED),
            **(metrics.changes(now, self._counted, DISCARDED) if self.config.algorithm.dynamic_sampling else {}),
            "time/learn_s": learn_s,
            "time/wait_s": wait_s,
            "time/sync_s": time.monotonic() - started - learn_s - wait_s,
        }
        self._counted = Counter(now)
        return found

    def _update(self, batch: Batch, unused_groups: Sequence[Discarded]) -> tuple[Advantages, dict[str, float]]:
        advantages = self._advantage(batch)
        self._observe(unused_groups)
        return advantages, self._learner.update(
            batch,
            advantages,
            version=self.step,
            drift=self._uses_tracker,
            demonstrations=self._demonstrations(),
        )

    def _observe(self, unused_groups: Sequence[Discarded]) -> None:
        """What dynamic sampling left out says as much of its tasks."""
        for one in unused_groups if self._uses_tracker else ():
            self.tracker.observe(one.task_id, one.reward, event=one.event, version=one.version)

    def _discard(self, group: Sequence[Trajectory]) -> None:
        for i, reward in observations(group, [t.reward for t in group]):
            dispatch = group[i].dispatch
            self._discarded.append(Discarded(group[i].task_id, reward, dispatch.event, dispatch.version))

    def _demonstrations(self) -> list[MaskedTokens]:
        """What this update imitates; by its number, so that a resumed run sees the same."""
        imitation = self.config.learner.imitation
        return self._traces.sample(self.step, imitation.batch) if imitation and self._traces else []

    def _batch(self, trajectories: Sequence[Trajectory]) -> Batch:
        try:
            return Batch(trajectories, kept(trajectories, self.config.learner)[0])
        except UnfitBatch as error:
            place = dump(trajectories, self._learner.dump_dir, self.step)
            raise UnfitBatch(f"{error}; no step was taken, the batch is in {place}") from None

    def mismatch_warning(self) -> str | None:
        """Once, when sampler and learner differ on tokens of one policy and nothing is set against it."""
        if self._warned or self.mismatch_max <= LARGE_MISMATCH or self.config.learner.decoupled:
            return None
        self._warned = True
        return (
            f"warning: sampler and learner differ by up to {self.mismatch_max:.2g} nats on tokens of one policy, which "
            "the loss takes for a change of the policy: set learner.mask_outside = [0.5, 5.0] to weigh it out and "
            "leave far tokens out (with learner.tis_cap alone one step a batch has no trust region), or give both "
            "the same dtype"
        )

    def _draw(self) -> list[RolloutRequest]:
        """The streams of one prompt: of one frozen value, and a group where the estimator compares within groups."""
        a = self.config.algorithm
        drawn = [self._sampler.draw() for _ in range(a.group_size)]
        task_id, group = drawn[0]
        value = self._value(task_id)  # once: the learner's thread may move it meanwhile
        if self._source.leaves > 1:  # a tree is one request, and a group of its own
            return [self._ticket(task_id, group, value)]
        return [self._ticket(task_id, group if self._grouped else None, value) for _ in drawn]

    def _again(self, old: RolloutRequest) -> RolloutRequest:
        return self._ticket(old.task_id, old.dispatch.group, self._value(old.task_id))

    def _value(self, task_id: str) -> float | None:
        """What a dispatch freezes; None where no advantage keeps the tracker, whose values would be nobody's."""
        return self.tracker.value(task_id) if self._uses_tracker else None

    def _ticket(self, task_id: str, group: int | None, value: float | None) -> RolloutRequest:
        dispatch = Dispatch(self._event, value, self.step, group)
        self._event += self._source.leaves
        return RolloutRequest(task_id, seed_of(self.config.run.seed, "episode", dispatch.event), dispatch)

    async def _play(self, request: RolloutRequest) -> Trajectory:
        wanted = self._sampling(), request.dispatch, request.seed
        return await self._episodes.play(self._engine, request.task_id, *wanted)

    async def _grow(self, request: RolloutRequest) -> Finished:
        wanted = self._sampling(), request.dispatch, request.seed
        return await self._episodes.grow(self._engine, request.task_id, *wanted)

    def _sampling(self) -> Sampling:
        r = self.config.rollout
        return self._episodes.sampling(r.temperature, r.top_p, r.top_k)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the learner's and the log's."""
        pipeline, before = self.pipeline.state_dict(), self._before
        if "taken" in before:  # an update that was cut short counts for nothing: its parts are outstanding again
            pipeline = {**pipeline, "outstanding": [*before["taken"], *pipeline["outstanding"]]}
        return {
            "event": self._event,
            "mismatch_max": self.mismatch_max,
            "advantage": before["advantage"] if before else self._advantage.state_dict(),
            "tracker": before["tracker"] if before else self.tracker.state_dict(),
            "sampler": self._sampler.state_dict(),
            **({"discarded": list(self._discarded)} if self._discarded else {}),
            "pipeline": pipeline,
        }

    def load_state_dict(self, step: int, state: Mapping[str, Any], logged: Iterable[Trajectory]) -> None:
        """`logged`: what the trajectory log holds; what of it no step up to `step` has used is trained on next."""
        self.step, self.mismatch_max = step, state["mismatch_max"]
        self._advantage.load_state_dict(state["advantage"])
        self.tracker.load_state_dict(state["tracker"])
        self._sampler.load_state_dict(state["sampler"])
        self._discarded = [Discarded(*one) for one in state.get("discarded", ())]
        kept = list(logged)
        self._event = max([state["event"], *(t.dispatch.event + 1 for t in kept)])
        self._sampler.skip(max([-1, *(t.dispatch.group for t in kept if t.dispatch.group is not None)]))
        if step == 0:  # what a lost policy sampled has no version to go under: it is played again
            kept = [t for t in kept if not (t.versions > 0).any()]
        finished = [clamp_versions(t, step) for t in unused(kept, state["event"], state["pipeline"])]
        self.pipeline.restore(state["pipeline"], finished)
        self.pipeline.advance(step)


def clamp_versions(trajectory: Trajectory, step: int) -> Trajectory:
    """Versions after `step` are of a process that was killed: this one will give their numbers to other policies.

    They become the version before `step`, so that no token passes for one of the policy that learns. step: from 1 on.
    """
    versions = np.where(trajectory.versions > step, step - 1, trajectory.versions)
    dispatch = replace(trajectory.dispatch, version=min(trajectory.dispatch.version, step))
    return replace(trajectory, versions=versions, dispatch=dispatch)


def _size(advantages: np.ndarray) -> float:
    """The mean |A| of a trajectory's tokens."""
    return float(np.abs(advantages).mean()) if len(advantages) else 0.0


def _pipeline(config: Config, source: PromptSource, log: TrajectoryLog) -> AsyncCollector | SyncCollector:
    r = config.rollout
    limit = round(config.algorithm.dynamic_sampling * r.batch)
    dynamic = DynamicSampling(limit, lambda group: kept(group, config.learner)[0]) if limit else None
    if r.mode in ("sync", "lockstep"):
        return SyncCollector(source, log, batch=r.batch, overlap=r.mode == "lockstep", dynamic=dynamic)
    return AsyncCollector(
        source,
        log,
        batch=r.batch // r.learn_in_parts,
        tokens=r.batch_tokens,
        in_flight=round(r.batch * r.over_provision),
        max_staleness=r.max_staleness,
        stale=r.stale,
        dynamic=dynamic,
    )
