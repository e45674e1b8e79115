"""Evaluate a policy: k samples a problem, many at a time, on disk as they finish, resumable at any point.

A sample's seed follows from the evaluation's seed, the problem and the sample's number alone: an interrupted evaluation
that is resumed asks for exactly the samples that are missing. Infrastructure failures are no samples: they are counted,
not written, and asked for again by the next call. A call that asks for less than the folder holds (a smaller k, fewer
problems) plays nothing and describes what is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine, EngineError
from solostream.agent.engines.spec import open_engine
from solostream.agent.rollout import rollout, seed_of
from solostream.agent.run_settings import registered
from solostream.agent.trajectory import Trajectory
from solostream.envs.making import make as make_env
from solostream.envs.rewards.grading import equivalent
from solostream.envs.text.prompts import system_prompt
from solostream.envs.types import Task
from solostream.evaluation.folder import SAMPLES, Found, line_of, locked, open_folder
from solostream.evaluation.metrics import Sample, summarize
from solostream.evaluation.options import ENV, Options, Preset
from solostream.evaluation.samples import reduce

SUMMARY, TABLE = "summary.json", "samples.parquet"
ENGINE_TRIES = 3  # of one sample, with a pause between them, before the evaluation stops


@dataclass(slots=True)
class Progress:
    """Where an evaluation stands. `samples` holds what was found on disk and what finished since."""

    total: int
    samples: list[Sample] = field(default_factory=list)
    infra: int = 0
    damaged: int = 0
    found: int = 0  # of `samples`, those of an earlier call
    replaced: int = 0  # samples of problems that were edited since
    k: int = 1  # samples a problem: asked for, or on disk where these are more
    started: float = field(default_factory=time.monotonic)

    @property
    def accuracy(self) -> float | None:
        return sum(s.solved for s in self.samples) / len(self.samples) if self.samples else None

    @property
    def code_ratio(self) -> float | None:
        called = [s.behaviour.first_call is not None for s in self.samples]
        return sum(called) / len(called) if called else None

    @property
    def tokens_per_s(self) -> float:
        sampled = sum(s.behaviour.action_tokens for s in self.samples[self.found :])
        return sampled / max(time.monotonic() - self.started, 1e-9)


async def evaluate(options: Options, report: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
    """Play what is missing and write samples.jsonl, summary.json and (with pyarrow) samples.parquet; the summary.

    report: called after every sample. Raises UserError before anything is played, also while another process plays in
    the folder; EngineError when the engine stays down. Whatever happens, finished samples are on disk and summary.json
    describes them.
    """
    options = options.settled()
    preset = options.sampling()
    folder = options.folder()
    tasks, make = _environment(options)
    with locked(folder):
        found = open_folder(folder, options.identity(), tasks)
        progress, missing = _asked(options, tasks, found)
        try:
            engine, tokenizer = await open_engine(
                options.model,
                tokenizer=options.tokenizer,
                slots=options.concurrency,
                max_len=options.max_tokens,
                seed=options.seed,
            )
            try:
                player = _Player(engine, Chat(tokenizer), preset, options.seed)
                progress.started = time.monotonic()
                report(progress)
                await _play(folder, player, lambda: make(tokenizer), missing, options.concurrency, progress, report)
            finally:
                await engine.close()
        finally:
            summary = _write_summary(folder, options, progress)
    return summary


def _asked(options: Options, tasks: Sequence[Task], found: Found) -> tuple[Progress, list[tuple[Task, int]]]:
    """Where the evaluation stands before it begins, and the samples that are missing."""
    wanted = [(task, i) for i in range(options.k) for task in tasks[: options.limit]]
    missing = [(task, i) for task, i in wanted if (task.id, i) not in found.keys]
    progress = Progress(total=len(found.keys) + len(missing), samples=list(found.samples), found=len(found.keys))
    progress.damaged, progress.replaced = found.damaged, found.replaced
    progress.k = max([options.k, *(i + 1 for _, i in found.keys)])
    return progress, missing


async def _play(
    folder: Path,
    player: _Player,
    make: Callable[[], Any],
    missing: Sequence[tuple[Task, int]],
    concurrency: int,
    progress: Progress,
    report: Callable[[Progress], None],
) -> None:
    """Play the `missing` samples, `concurrency` at a time; each is on disk before the next begins."""
    left = iter(missing)

    async def work() -> None:
        env = make()
        try:
            for task, sample in left:
                trajectory = await player.play(env, task, sample)
                if trajectory.ending == "infra":
                    progress.infra += 1
                else:
                    file.write(line_of(trajectory, task, sample))
                    file.flush()
                    progress.samples.append(reduce(trajectory))
                report(progress)
        finally:
            await env.aclose()

    with (folder / SAMPLES).open("a", encoding="utf-8") as file:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, max(len(missing), 1))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:  # of the workers: one that says what is wrong is enough
            raise _first(errors) from None


class _Player:
    """Plays one sample, with another try after an engine's failure."""

    def __init__(self, engine: Engine, chat: Chat, preset: Preset, seed: int) -> None:
        self._engine, self._chat, self._seed = engine, chat, seed
        self._max_tokens = min(preset.max_tokens, getattr(engine, "max_len", preset.max_tokens))
        self._sampling = preset.turn(self._max_tokens)

    async def play(self, env: Any, task: Task, sample: int) -> Trajectory:
        seed = seed_of(self._seed, task.id, sample)
        for attempt in range(ENGINE_TRIES):
            try:
                return await rollout(
                    env,
                    self._engine,
                    self._chat,
                    sampling=self._sampling,
                    max_tokens=self._max_tokens,
                    task_id=task.id,
                    seed=seed,
                )
            except EngineError:
                if attempt == ENGINE_TRIES - 1:
                    raise
                await asyncio.sleep(2.0**attempt)
        raise AssertionError("the last attempt returns or raises")


def _environment(options: Options) -> tuple[Sequence[Task], Callable[[Any], Any]]:
    """The problems, and what makes one more environment given the tokenizer. Raises UserError."""
    env, settings = options.env or ENV, options.settings()
    defaults = registered(env)
    if options.data is not None:
        settings["tasks"] = options.data
    if not options.tools:
        settings |= {"tools": (), "max_turns": 1, "parallel_calls": True}  # only the policy ends its turn
        if {**defaults, **settings}.get("system_prompt") is None:
            settings["system_prompt"] = system_prompt((), settings.get("answer", "boxed"))

    def make(tokenizer: Any) -> Any:
        return make_env(env, {"tokenizer": tokenizer, **settings})

    first = make(None)
    first.close()
    return first.tasks, make


def _write_summary(folder: Path, options: Options, progress: Progress) -> dict[str, Any]:
    summary = {
        "config": {**options.identity(), "k": progress.k, "limit": options.limit},
        "complete": len(progress.samples) == progress.total,
        "expected": progress.total,
        "infra": progress.infra,
        "damaged": progress.damaged,
        "replaced": progress.replaced,
        "wall_s": round(time.monotonic() - progress.started, 3),
        "tokens_per_s": round(progress.tokens_per_s, 1),
        "metrics": summarize(progress.samples, equivalent),
    }
    draft = folder / f".{SUMMARY}.draft"
    draft.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(draft, folder / SUMMARY)
    write_table(folder / TABLE, progress.samples)
    return summary


def write_table(path: Path, samples: Sequence[Sample]) -> bool:
    """One row a sample as Parquet; False where pyarrow is not installed (samples.jsonl has everything)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        return False
    rows = [{**asdict(s), **asdict(s.behaviour)} for s in samples]
    for row in rows:
        del row["behaviour"]
    if rows:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return bool(rows)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
