"""`rollout_worker=` of TRL's AsyncGRPOTrainer (trl.experimental.async_grpo): our episodes and advantages, its learner.

TRL keeps the model, the optimizer, its clipped loss and the transfer of weights to its vLLM servers. What stays here:
environments and sandboxes (whatever `play` does), one value a task (SPO), shaping (ASPO), which task next, the log, and
batches of the first that finish. The worker is a thread with an event loop of its own.

What TRL's samples cannot say: advantages that differ between the tokens of a trajectory, and a version for each token
(the oldest one goes). What its trainer does not tell: how far an update moved the policy, so the tracker forgets at a
constant rate.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from solostream.agent.rollout import seed_of
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog
from solostream.errors import UserError
from solostream.training.advantages import ASPO, SPO, Advantage, ValueTracker, grouped, tracker_of
from solostream.training.batch import Batch
from solostream.training.rollouts.collector import AsyncCollector, oldest_version
from solostream.training.rollouts.request import Play, PromptSource, RolloutRequest
from solostream.training.rollouts.task_sampler import Prioritized, Sampler, TaskSampler, Uniform


def spo_aspo() -> Advantage:
    """ASPO around SPO, the tracker forgetting a tenth an observation."""
    return ASPO(SPO(ValueTracker(0.9, 0.9)))


class RolloutWorker:
    """A `RolloutWorkerProtocol`.

    play: `RolloutRequest` -> `Trajectory`, usually `agent.rollout.rollout` with an engine that asks TRL's vLLM server.
    folder: gets `trajectories.jsonl`, which `solostream view` shows. advantage: an estimator with its stages.
    batch, in_flight: trajectories that are compared with each other, and that are on their way.
    Raises UserError for an advantage that compares within groups.
    """

    def __init__(
        self,
        play: Play,
        task_ids: Sequence[str],
        folder: str | Path,
        *,
        advantage: Advantage | None = None,
        batch: int = 64,
        in_flight: int = 96,
        max_staleness: int = 4,
        retries: int = 2,
        seed: int = 0,
        queued: int = 4096,
    ) -> None:
        self.rollout_buffer: queue.Queue[RolloutSample] = queue.Queue(queued)
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self._advantage = advantage or spo_aspo()
        if grouped(self._advantage, 1):
            raise UserError("TRL compares within groups by itself: give an advantage that does not")
        self._tracker = tracker_of(self._advantage)
        chosen: Sampler = (
            Prioritized(list(task_ids), self._tracker, seed_of(seed, "sampler"))
            if self._tracker
            else Uniform(list(task_ids), seed_of(seed, "sampler"))
        )
        self._tasks = TaskSampler(list(task_ids), chosen, streams=1)
        self._seed, self._event, self._version = seed, 0, 0
        source = PromptSource(self._draw, lambda old: self._request(old.task_id), play, retries)
        self._folder = Path(folder)
        self._make = partial(AsyncCollector, source, batch=batch, in_flight=in_flight, max_staleness=max_staleness)
        self._collector: AsyncCollector | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._alive = time.monotonic()
        self._thread = threading.Thread(target=self._in_thread, name="solostream rollouts", daemon=True)

    def start(self) -> None:
        """Begin to play."""
        self._alive = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End what is in flight; returns when the thread has ended. Idempotent."""
        if self._loop is not None and self._work is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._work.cancel)
        if self._thread.ident is not None:
            self._thread.join()

    def update_model_version(self, model_version: int) -> None:
        """From now on episodes begin under `model_version`; what has become too old is given up."""
        self._version = model_version
        if self._loop is not None and self._collector is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._collector.advance, model_version)

    def check_health(self, stale_after_s: float) -> None:
        """Raises RuntimeError when playing failed, or when nothing was finished for so long."""
        if self._failure is not None:
            raise RuntimeError(f"rollouts failed: {self._failure}") from self._failure
        silent = time.monotonic() - self._alive
        if silent > stale_after_s:
            raise RuntimeError(f"no batch for {silent:.0f} s: are episodes that long, or is a server stuck?")

    def _in_thread(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._failure = error

    async def _run(self) -> None:
        self._loop, self._work = asyncio.get_running_loop(), asyncio.current_task()
        self._folder.mkdir(parents=True, exist_ok=True)
        log = TrajectoryLog(self._folder / "trajectories.jsonl")
        self._collector = self._make(log)
        try:
            for step in range(1, 1 << 62):
                batch = Batch(await self._collector.take())
                found = self._advantage(batch)
                await log.update(step, batch, found.values)
                self.metrics_queue.put({f"solostream/{name}": value for name, value in found.metrics.items()})
                for trajectory, values in zip(batch, found.values, strict=True):
                    await self._put(sample(trajectory, values))
                self._alive = time.monotonic()
        except asyncio.CancelledError:
            return
        finally:
            await self._collector.close()
            log.close()

    async def _put(self, item: RolloutSample) -> None:
        """Episodes go on while the trainer's queue is full."""
        while True:
            try:
                return self.rollout_buffer.put_nowait(item)
            except queue.Full:
                self._alive = time.monotonic()
                await asyncio.sleep(0.05)

    def _draw(self) -> list[RolloutRequest]:
        return [self._request(self._tasks.draw()[0])]

    def _request(self, task_id: str) -> RolloutRequest:
        value = self._tracker.value(task_id) if self._tracker else None
        dispatch = Dispatch(self._event, value, self._version)
        self._event += 1
        return RolloutRequest(task_id, seed_of(self._seed, "episode", dispatch.event), dispatch)


def sample(trajectory: Trajectory, advantages: np.ndarray) -> RolloutSample:
    """What TRL trains on. advantages: of the action tokens. Raises UserError when they differ."""
    if len(advantages) and np.ptp(advantages) > 1e-9:
        raise UserError(
            "a sample of TRL has one advantage for all of its tokens: leave out what weighs turns or tokens"
        )
    if len(trajectory.segments) > 1:
        raise UserError("a sample of TRL is one sequence: leave out the tool 'fold', which replaces history")
    said = [{"role": turn.role, "content": turn.text} for turn in trajectory.turns]
    first = next((i for i, turn in enumerate(said) if turn["role"] == "assistant"), len(said))
    return RolloutSample(
        prompt=said[:first],  # messages are for TRL's log of traces; it trains on the ids
        completion=said[first:],
        input_ids=trajectory.token_ids,
        completion_mask=trajectory.action_mask.astype(np.int64),
        old_log_probs=np.nan_to_num(trajectory.logprobs),
        advantage=float(advantages[0]) if len(advantages) else 0.0,
        model_version=oldest_version(trajectory),
        group_id=trajectory.dispatch.event,
        metrics={"reward": trajectory.reward},
    )
