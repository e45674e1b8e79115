"""The main job, top to bottom: build, cold start, evaluate, reinforce, evaluate, report.

One event loop plays the episodes; the learner works in a thread of its own, so that in the asynchronous mode rollouts
go on while it learns. A first Ctrl-C (or SIGTERM) ends the run at the next step with a checkpoint; a second at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from solostream import disk, provenance, registry
from solostream.agent.engines.allocator import keep_freed_memory, return_freed_memory
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.exploration.tree import sampled_once
from solostream.agent.trajectory_file import TrajectoryLog, read_lines
from solostream.errors import UserError
from solostream.evaluation.own_metrics import Metric
from solostream.evaluation.writer import locked
from solostream.training import observers
from solostream.training.advantages.base import Advantage
from solostream.training.cluster import crew
from solostream.training.cluster.learning import Learning, Learns, sft_loss, sft_step
from solostream.training.cluster.rank_worker import RankLost
from solostream.training.config import Config
from solostream.training.config.memory.weights import learners, only_adapters
from solostream.training.config.unused import notices, unused
from solostream.training.losses import Loss
from solostream.training.observers import RunTracker
from solostream.training.rollouts.cores import Cores
from solostream.training.rollouts.learner_thread import LearnerThread
from solostream.training.rollouts.rare_collections import rare_collections
from solostream.training.rollouts.task_sampler import Sampler
from solostream.training.rollouts.turns import Turns
from solostream.training.rollouts.validation import Validation
from solostream.training.run import checkpoint, plots, setup
from solostream.training.run.checkpoint import State
from solostream.training.run.clock import Clock
from solostream.training.run.interrupt import Interrupt, Interrupted
from solostream.training.run.metric_logger import MetricLogger
from solostream.training.run.progress import ProgressBar, ProgressDisplay
from solostream.training.run.rl_loop import Reinforcement
from solostream.training.run.summary import Scores, Summary, table
from solostream.training.sft import cold_start
from solostream.training.sft.trace_set import TraceSet, refuse_bad

T = TypeVar("T")


class Trainer:
    """One run, prepared; `run` does it.

    folder: default `run.root`/`run.name`. view: where progress is shown. source: the checkpoint to go on from.
    started: `time.monotonic()` when the work began (default: now). cold_start_only: no reinforcement comes after it.

    Objects that take the place of what the configuration names: advantage (with its stages around it), loss, sampler
    (of tasks), rollout (a function like `agent.rollout.rollout`), engine (a function from the number of concurrent
    episodes to an `Engine`, plain or async, called again after a crash). trackers, metrics (by name) and callbacks come
    on top. Nothing of them is stored: who resumes gives them again.

    Raises UserError for whatever is wrong with the input, before anything is computed or written.
    """

    def __init__(
        self,
        config: Config,
        folder: Path | None = None,
        view: ProgressDisplay | None = None,
        source: Path | None = None,
        *,
        advantage: Advantage | None = None,
        loss: Loss | None = None,
        sampler: Sampler | None = None,
        rollout: Callable[..., Any] | None = None,
        engine: Callable[[int], Any] | None = None,
        trackers: Sequence[RunTracker] = (),
        metrics: Mapping[str, Metric] = MappingProxyType({}),
        callbacks: Sequence[Any] = (),
        started: float | None = None,
        cold_start_only: bool = False,
    ) -> None:
        started = time.monotonic() if started is None else started
        config = config.completed()
        view = view or ProgressDisplay()
        self.config, self.view, self.cold_start_only = config, view, cold_start_only
        self.folder = folder = folder or Path(config.run.root) / (config.run.name or "run")
        self._advantage, self._sampler, self._rollout, self._engine = advantage, sampler, rollout, engine
        self.loss = loss or registry.make("loss", config.learner.loss, config.loss.get(config.learner.loss))
        self._metrics = {**observers.metrics(config), **metrics}
        self._callbacks = [*observers.callbacks(config, folder), *callbacks]
        for name in config.run.trackers:
            registry.load("tracker", name)
        setup.refuse_learning(config, advantage, self.loss)
        self._trackers = list(trackers)
        self.sft_batches = cold_start.sft_batches(config)
        self.saved = checkpoint.taken_up(config, source)
        plain = self.saved.plain if self.saved else {}
        self.clock = Clock(plain.get("times", {}), started)
        self.placement = crew.connect(config, view.say)
        with self.clock.phase("build"):
            of_cold_start = cold_start.problems_of(self.sft_batches)
            train, test = setup.problems(config, view.say)
            self.inputs = checkpoint.inputs(config, train, test, self.saved)  # now: files may change meanwhile
            checkpoint.refuse_other_inputs(config, self.inputs, self.saved)
            self.base = checkpoint.base_of(config, folder)
            self.under = checkpoint.base_under(config, folder, source, self.saved)
            refuse_bad(config, test)
            self.parts = setup.build(
                config, train, test, of_cold_start, source, self.under, view.say, cold_start_only=cold_start_only
            )
            self.traces = TraceSet(config, self.parts, view.say) if config.cold_start.data else None
            self.inputs["traces"] = self.traces.fingerprint if self.traces else None
            checkpoint.refuse_other_traces(config, self.inputs, self.saved)
        self.learning = Learning(config, self.parts, self.placement, self.loss, folder)
        told = [*unused(config), *notices(config), *checkpoint.changes(config, self.saved)]
        view.say("\n".join([self.learning.described, *told, *checkpoint.unlike(config, self.inputs)]))
        second = setup.why_a_second_copy(config, self.parts.model)
        if engine is None and self.placement is None and config.run.engine == "hf" and second:
            view.say(f"the sampler has a second copy of the weights: {second}")
        self.source = source
        self._enough = False  # a callback said so
        self.cold_step: int = plain.get("cold_step", 0)
        self.before = Scores(**plain["before"]) if plain.get("before") else None

    def stop(self) -> None:
        """Ask the run to end at the next step, with a checkpoint; from any thread, as Ctrl-C does from the main one."""
        if (interrupt := getattr(self, "interrupt", None)) is not None:
            interrupt.ask()

    def run(self) -> Summary | None:
        """What is left to do; None after the cold start only. Raises Interrupted, SandboxError, EngineError."""
        torch.manual_seed(self.config.run.seed)
        pieces = any(c.gradient_checkpointing or c.lora for c in learners(self.config).values())
        (return_freed_memory if pieces else keep_freed_memory)()
        with locked(self.folder), rare_collections():
            return asyncio.run(self._run())

    async def _run(self) -> Summary | None:
        self.thread = LearnerThread()
        self.cores = Cores(self.thread.run, self.config.rollout.mode)
        self.policy, self.episodes = crew.assemble(
            self.config, self.parts, self.placement, still=self.thread.still, engine=self._engine, rollout=self._rollout
        )
        try:
            await self.cores.share()
            if self.learning.ranks is None:
                await self.policy.load_weights(LiveWeights(self.parts.model), 0)  # an engine may refuse the model
            return await self._phases()
        finally:
            await self.episodes.close()
            await self.policy.close()
            await self.thread.run(self.learning.close)
            self.thread.close()
            self.cores.leave()
            if self.placement is not None:
                self.placement.close()

    async def _phases(self) -> Summary | None:
        self._open()
        try:
            with self.interrupt.listening():
                return await self.learning.through(self._learn, self._take_up_last)
        finally:
            self.logger.close()

    async def _learn(self) -> Summary | None:
        """From the checkpoint that there is, or from the start."""
        reinforced = self.saved is not None and self.saved.plain["phase"] == "rl"
        await self.thread.run(self.learning.open, (self.base if reinforced else None) or self.source)
        async with self.cores.alone():
            learner = await self._cold_start()
        if self.before is None:
            self.before = await self._evaluate("before", 0, learner)
        if self.cold_start_only:
            await self._save(learner)
            if self.before is not None:
                self.view.say(f"held-out accuracy {self.before.accuracy:.1%} sampled\n{self.folder}/")
            return None
        await self.thread.run(learner.merge_adapters)
        del learner  # and its optimizer's moments
        return await self._reinforce()

    def _take_up_last(self, lost: RankLost) -> int:
        """What the run has become goes back to the last checkpoint; what samples, and the log, stay as they are."""
        with suppress(UserError):  # there is none yet: then to the start
            self.source, self.saved = checkpoint.newest(self.folder / "checkpoints")
        plain = self.saved.plain if self.saved else {}
        self.cold_step = plain.get("cold_step", 0)
        self.before = Scores(**plain["before"]) if plain.get("before") else None
        self.logger.keep(self._is_behind)
        self.view.say(f"{lost}; the ranks are started again, from {self.source or 'the beginning'}")
        return self.saved.step if self.saved else 0

    def _open(self) -> None:
        """What lives as long as the run, and needs its event loop."""
        config, parts = self.config, self.parts
        self.folder.mkdir(parents=True, exist_ok=True)
        disk.need_room(self.folder)  # before what is there is written over
        checkpoint.set_aside(self.folder / "checkpoints", self.source, self.saved, self.view.say)
        checkpoint.bring_base(self.base, self.under)
        (self.folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        provenance.write(self.folder, seed=config.run.seed)
        self.interrupt = Interrupt()
        opened = observers.open_trackers(config, self.folder)
        self.logger = MetricLogger(self.folder, trackers=[*opened, *self._trackers])
        self.logger.keep(self._is_behind)
        self.held_out = Validation(config, parts.test, parts.tokenizer, self.policy, self.episodes)

    async def _cold_start(self) -> Learns:
        """Supervised steps, while the demonstrations of the next ones are played."""
        learner = await self.thread.run(self.learning.begin, "cold_start")
        if self.saved is not None and self.saved.plain["phase"] == "cold_start":
            await self.thread.run(learner.load, self.source)
        await self._send_weights(learner, 0)
        if self.traces and self.config.cold_start.verify:
            await self._interruptible(self.traces.verify(self.folder), learner)
        course = self.traces or cold_start.Demonstrations(self.config, self.parts, self.sft_batches)
        total = course.steps
        turns = Turns(self.policy, self.thread.run, lent=self.config.rollout.colocate == "turns")
        if self.cold_step < total:
            with self.clock.phase("cold start"), self.view.stage("cold start", total, self.cold_step) as stage:
                async for step, sequences in course.batches(self.cold_step):
                    metrics = await turns.run(learner, 0, sft_step, learner, sequences, step)
                    course.record(step, metrics["loss"])
                    done, self.cold_step = step + 1 - self.cold_step, step + 1
                    metrics |= await self._measure_cold_start(learner, total)
                    self.logger.log("cold_start", self.cold_step, metrics)
                    stage.advance(metrics, done)
                    due = self.cold_step % self.config.run.checkpoint_every == 0 and self.cold_step < total
                    if due or self.interrupt.asked:
                        await self._save(learner)
                    if self.interrupt.asked:
                        raise Interrupted
            self.cold_step = total  # the last phase may have ended early
            await self._send_weights(learner, 0)
        return learner

    async def _measure_cold_start(self, learner: Learns, total: int) -> dict[str, float]:
        """Loss of the held-out traces and accuracy on held-out problems, at the steps that ask for them."""
        every, last = self.config.cold_start.eval_every, self.cold_step == total
        if not last and (not every or self.cold_step % every):
            return {}
        measured = {}
        if self.traces and self.traces.held_out:
            measured["held_out_loss"] = await self.thread.run(sft_loss, learner, self.traces.held_out)
        if not last:  # after the last step it is evaluated anyway
            await self._send_weights(learner, 0)
            found, _ = await self._interruptible(self.held_out.scores(lambda: None), learner)
            measured["held_out_accuracy"] = found.accuracy
        return measured

    async def _evaluate(self, title: str, step: int, *state: Any) -> Scores:
        """state: what `_save` is given when the person interrupts; none where a checkpoint has everything already."""
        with self.clock.phase("evaluation"), self.view.stage(title, self.held_out.total) as stage:
            found, rewards = await self._interruptible(self.held_out.scores(stage.advance), *state)
        self.logger.log_problems(step, rewards)
        self.logger.log("eval", step, asdict(found))
        return found

    async def _reinforce(self) -> Summary:
        config = self.config
        if self.base is not None:
            await self.thread.run(self.learning.write_base, self.base)
        learner = await self.thread.run(self.learning.begin, "rl")
        resumed = self.saved if self.saved is not None and self.saved.plain["phase"] == "rl" else None
        kept: int | None = 0  # bytes of the log; None: all of it, whatever was logged after the checkpoint
        if resumed is not None:
            kept = resumed.plain["log_bytes"] if config.rollout.mode != "async" else None
        log = TrajectoryLog(self.folder / "trajectories.jsonl", kept)
        rl = Reinforcement(
            config, self.parts.train, learner, self.policy, self.episodes, log, self.thread.run,
            advantage=self._advantage, sampler=self._sampler, own_metrics=self._metrics, traces=self.traces,
        )  # fmt: skip
        try:
            if resumed is not None:
                await self.thread.run(learner.load, self.source)
                torch.set_rng_state(resumed.tensors["torch_rng"])
                logged = [line.trajectory for line in read_lines(log.path) if line.trajectory]
                rl.load_state_dict(resumed.step, resumed.plain["reinforcement"], logged)
            await self._send_weights(learner, rl.step)  # whose they are from now on
            if resumed is None:
                if rl.n_starts:
                    with self.clock.phase("tracker start"), self.view.stage("start", rl.n_starts) as stage:
                        await self._interruptible(rl.start(stage.advance), learner)
                if rl.n_starts or self.cold_step:  # else there is nothing yet that a new start would not have at once
                    await self._save(learner, rl, log)
            observers.tell(self._callbacks, "on_start", rl.step)
            with self.clock.phase("reinforcement"), self.view.stage("learning", config.run.steps, rl.step) as stage:
                while rl.step < config.run.steps and not self._enough:
                    due = rl.step and config.eval.every and rl.step % config.eval.every == 0
                    if due and not self.logger.holds("eval", rl.step):  # also after a kill between save and score
                        await self._evaluate(f"step {rl.step}", rl.step, learner, rl, log)
                    await self._step(rl, learner, log, stage)
            return await self._report(rl)
        finally:
            await rl.pipeline.close()
            log.close()

    async def _step(self, rl: Reinforcement, learner: Learns, log: TrajectoryLog, stage: ProgressBar) -> None:
        run, started, busy = self.config.run, time.monotonic(), rl.pipeline.busy_s
        try:
            batch = await self.interrupt.race(rl.take())
        except Interrupted:
            await self._save(learner, rl, log)
            raise
        waited = time.monotonic() - started
        last = rl.step + 1 >= run.steps
        if last:
            rl.pipeline.finish()
        metrics = await rl.learn(batch)
        if (warning := rl.mismatch_warning()) is not None:
            self.view.say(warning)
        spent = time.monotonic() - started
        metrics |= {
            "time/step_s": spent,
            "time/tokens_per_s": sampled_once(batch) / spent,
            "idle/learner": (waited + (metrics["time/wait_s"] or 0.0)) / spent,
            "idle/rollout": max(0.0, 1 - (rl.pipeline.busy_s - busy) / spent),
        }
        self.logger.log("rl", rl.step, metrics)
        stage.advance(metrics)
        self._enough = observers.tell(self._callbacks, "on_step", rl.step, metrics, batch)
        if last or self._enough or self.interrupt.asked or rl.step % run.checkpoint_every == 0:
            await self._save(learner, rl, log)
        if self.interrupt.asked and not last:
            raise Interrupted

    async def _report(self, rl: Reinforcement) -> Summary:
        assert self.before is not None
        after = await self._evaluate("after", rl.step)
        with self.clock.phase("evaluation"):
            no_tool = await self._interruptible(self.held_out.no_tool_accuracy(lambda: None))
        with self.clock.phase("plots"):
            plots.draw(self.logger.rows, self.folder / "plots")
        summary = Summary.of(
            self.config.run,
            self.folder.name,
            self.clock.times(),
            steps=rl.step,
            before=self.before,
            after=after,
            no_tool_accuracy=no_tool,
            mismatch_max=rl.mismatch_max,
        )
        summary.write(self.folder)
        observers.tell(self._callbacks, "on_end", asdict(summary))
        told = checkpoint.unlike(self.config, self.inputs)
        self.view.say("\n".join(["", table(summary), *told, f"{self.folder}/"]))
        return summary

    async def _save(self, learner: Learns, rl: Reinforcement | None = None, log: TrajectoryLog | None = None) -> None:
        """A checkpoint of this moment; the files are written in the learner's thread, while episodes go on."""
        plain = {
            "phase": "rl" if rl else "cold_start",
            "cold_step": self.cold_step,
            "before": asdict(self.before) if self.before else None,
            "times": self.clock.times(),
            **self.inputs,
            "reinforcement": rl.state_dict() if rl else None,
            "log_bytes": log.sync() if log else 0,
        }
        state = State(rl.step if rl else 0, plain, {"torch_rng": torch.get_rng_state()})

        def write(draft: Path) -> None:
            apart = rl is not None or only_adapters(self.config)  # the base has a folder, or is the draft
            learner.save(draft, base=not apart, on=self.base)
            setup.write_settings(self.config, self.folder.name, self.parts, draft)

        await self.thread.run(partial(checkpoint.save, self.folder / "checkpoints", state, write, self.config.run.keep))

    async def _send_weights(self, learner: Learns, version: int) -> None:
        await self.policy.load_weights(await self.thread.run(learner.weights), version)

    async def _interruptible(self, work: Coroutine[Any, Any, T], *state: Any) -> T:
        """`work` has no state worth keeping: an interruption ends it, and saves `state` where there is one."""
        try:
            async with self.cores.alone():
                return await self.interrupt.race(work)
        except Interrupted:
            if state:
                await self._save(*state)
            raise

    def _is_behind(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of metrics is part of what the checkpoint has done."""
        if row["phase"] == "cold_start":
            return bool(row["step"] <= self.cold_step)
        done = self.saved.step if self.before is not None and self.saved is not None else -1
        told_again = row["phase"] == "eval" and 0 < row["step"] == self.config.run.steps
        return bool(row["step"] <= done and not told_again)
