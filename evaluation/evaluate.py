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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from solostream import registry
from solostream.agent.answer_watch import AnswerWatch
from solostream.agent.engine import EngineError
from solostream.agent.run_settings import registered
from solostream.agent.trajectory_file import read_lines
from solostream.envs.making import factory_of
from solostream.envs.making import make as make_env
from solostream.envs.rewards.grading import equivalent
from solostream.envs.text.prompts import system_prompt
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.evaluation.folder import SAMPLES, FolderContents, line_of, locked, open_folder
from solostream.evaluation.metrics import Sample, summarize
from solostream.evaluation.options import ENV, EvalOptions
from solostream.evaluation.own_metrics import measured
from solostream.evaluation.players import Player, open_player
from solostream.evaluation.samples import reduce
from solostream.provenance import provenance, rent_of

SUMMARY, TABLE = "summary.json", "samples.parquet"


@dataclass(slots=True)
class Progress:
    """Where an evaluation stands. `samples` holds what was found on disk and what finished since."""

    total: int
    samples: list[Sample] = field(default_factory=list)
    infra: int = 0
    damaged: int = 0
    found: int = 0  # of `samples`, those of an earlier call
    replaced: int = 0  # samples of problems that were edited since
    waiting: int = 0  # requests that wait for a rate limit now
    trouble: str = ""  # of the endpoint, with the last sample that it did not answer
    thought_opener: str = ""  # of the player
    k: int = 1  # samples a problem: asked for, or on disk where these are more
    started: float = field(default_factory=time.monotonic)

    @property
    def accuracy(self) -> float | None:
        """The share of solved samples so far; None before the first."""
        return sum(s.solved for s in self.samples) / len(self.samples) if self.samples else None

    @property
    def code_ratio(self) -> float | None:
        """The share of samples so far that call a tool; None before the first."""
        called = [s.behaviour.first_call is not None for s in self.samples]
        return sum(called) / len(called) if called else None

    @property
    def tokens_per_s(self) -> float:
        """Tokens that this process sampled a second; what an earlier one found does not count."""
        sampled = sum(s.behaviour.action_tokens for s in self.samples[self.found :])
        return sampled / max(time.monotonic() - self.started, 1e-9)


async def evaluate(options: EvalOptions, report: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
    """Play what is missing and write samples.jsonl, summary.json and (with pyarrow) samples.parquet; the summary.

    report: called after every sample. Raises UserError before anything is played, also while another process plays in
    the folder; EngineError when the engine stays down. Whatever happens, finished samples are on disk and summary.json
    describes them.
    """
    options = options.settled()
    identity = options.identity()
    folder = options.folder()
    for name in options.metric:  # said before anything is played
        registry.load("metric", name)
    tasks, make = _environment(options)
    with locked(folder):
        progress, missing = _asked(options, tasks, open_folder(folder, identity, tasks))

        def waits() -> None:
            progress.waiting = player.waiting
            report(progress)

        try:
            player = await open_player(options, waits)
            try:
                progress.started = time.monotonic()
                progress.thought_opener = player.thought_opener
                report(progress)
                await _play(folder, player, lambda: make(player.tokenizer), missing, options, progress, report)
            finally:
                await player.close()
        finally:
            summary = _write_summary(folder, options, progress)
        if player.trouble and not progress.samples:
            raise EngineError(player.trouble)
    return summary


def _asked(
    options: EvalOptions, tasks: Sequence[Task], found: FolderContents
) -> tuple[Progress, list[tuple[Task, int]]]:
    """Where the evaluation stands before it begins, and the samples that are missing."""
    wanted = [(task, i) for i in range(options.k) for task in tasks[: options.limit]]
    missing = [(task, i) for task, i in wanted if (task.id, i) not in found.keys]
    progress = Progress(total=len(found.keys) + len(missing), samples=list(found.samples), found=len(found.keys))
    progress.damaged, progress.replaced = found.damaged, found.replaced
    progress.k = max([options.k, *(i + 1 for _, i in found.keys)])
    return progress, missing


async def _play(
    folder: Path,
    player: Player,
    make: Callable[[], Any],
    missing: Sequence[tuple[Task, int]],
    options: EvalOptions,
    progress: Progress,
    report: Callable[[Progress], None],
) -> None:
    """Play the `missing` samples, some at a time; each is on disk before its worker begins another."""
    left = iter(missing)

    async def work() -> None:
        env = make()
        try:
            for task, sample in left:
                trajectory = await player.play(env, task, sample)
                if trajectory is None or trajectory.ending == "infra":
                    progress.infra += 1
                    progress.trouble = player.trouble
                else:
                    file.write(line_of(trajectory, task, sample, system_text(env)))
                    file.flush()
                    progress.samples.append(reduce(trajectory))
                    watch.see(trajectory)
                report(progress)
        finally:
            await env.aclose()

    watch = AnswerWatch(str(options.settings().get("answer", "boxed")))
    with (folder / SAMPLES).open("a", encoding="utf-8") as file:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(options.concurrency, max(len(missing), 1))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:  # of the workers: one that says what is wrong is enough
            raise _first(errors) from None


def system_text(env: Any) -> str | None:
    """What the system message of a fitted environment says, "" without one; None where it does not tell."""
    told = getattr(env, "instructions", None)
    return None if told is None else "\n\n".join(one["content"] for one in told if one["role"] == "system")


def _environment(options: EvalOptions) -> tuple[Sequence[Task], Callable[[Any], Any]]:
    """The problems, and what makes one more environment given the tokenizer. Raises UserError."""
    env, settings = options.env or ENV, options.settings()
    defaults = registered(env)
    if (tasks := options.tasks()) is not None:
        settings["tasks"] = tasks
    if options.endpoint and options.tools:
        settings = _native(env, defaults, settings)
    if not options.tools:
        settings |= {"tools": (), "max_turns": 1, "parallel_calls": True}  # only the policy ends its turn
        if {**defaults, **settings}.get("system_prompt") is None:
            settings["system_prompt"] = system_prompt((), settings.get("answer", "boxed"))

    def make(tokenizer: Any) -> Any:
        return make_env(env, {"tokenizer": tokenizer, **settings})

    first = make(None)
    first.close()
    return first.tasks, make


def _native(env: str, defaults: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Tools go to an endpoint as tools, several calls a turn, unless the settings name a syntax to write them in."""
    ours = factory_of(env) is ToolEnv
    if not ours or settings.get("syntax", "auto") != "auto":
        return settings
    native: dict[str, Any] = {"syntax": "hermes", "parallel_calls": True}
    known = {**defaults, **settings}
    if known.get("system_prompt") is None:
        native["system_prompt"] = system_prompt(("native",), known.get("answer", "boxed"))
    return {**native, **settings, "syntax": "hermes"}


def _write_summary(folder: Path, options: EvalOptions, progress: Progress) -> dict[str, Any]:
    metrics = summarize(progress.samples, equivalent)
    if options.metric:
        metrics["own"] = _own(folder / SAMPLES, options.metric)
    wall_s = round(time.monotonic() - progress.started, 3)
    machine_s = round(_spent(folder) + wall_s, 3)
    summary = {
        "config": {**options.identity(), "k": progress.k, "limit": options.limit},
        "complete": len(progress.samples) == progress.total,
        "expected": progress.total,
        "infra": progress.infra,
        "trouble": progress.trouble,
        "thought_opener": progress.thought_opener,
        "damaged": progress.damaged,
        "replaced": progress.replaced,
        "wall_s": wall_s,
        "machine_s": machine_s,
        "tokens_per_s": round(progress.tokens_per_s, 1),
        "cost": _cost(metrics["usage"], options.prices, machine_s, options.price_per_hour),
        "provenance": provenance(),
        "metrics": metrics,
    }
    draft = folder / f".{SUMMARY}.draft"
    draft.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, folder / SUMMARY)
    write_table(folder / TABLE, progress.samples)
    return summary


def _own(samples: Path, names: Sequence[str]) -> dict[str, float | int | None]:
    """What a user's own metrics say of all samples. Raises UserError."""
    chosen = {name: registry.bind("metric", name) for name in names}
    played = [line.trajectory for line in read_lines(samples) if line.trajectory] if samples.exists() else []
    return measured(chosen, played)


def _spent(folder: Path) -> float:
    """Seconds that earlier starts of this evaluation took; its samples are their work."""
    try:
        return float(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["machine_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _cost(usage: Mapping[str, int] | None, prices: Sequence[float], machine_s: float, per_hour: float) -> float | None:
    """Of all samples that are there, in the currency of the prices; None where no price was given that applies.

    prices: of a million tokens, for what an endpoint counted. per_hour: of the machine, for `machine_s` seconds.
    """
    parts = [] if (rent := rent_of(machine_s, per_hour)) is None else [rent]
    if usage and prices:
        prompt, completion, cached = (*prices, prices[0])[:3]
        fresh = usage["prompt_tokens"] - usage["cached_tokens"]
        spent = fresh * prompt + usage["completion_tokens"] * completion + usage["cached_tokens"] * cached
        parts.append(spent / 1e6)
    return round(sum(parts), 6) if parts else None


def write_table(path: Path, samples: Sequence[Sample]) -> bool:
    """One row a sample as Parquet; False where pyarrow is not installed (samples.jsonl has everything)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        return False
    rows = [{**asdict(s), **asdict(s.behaviour), **(asdict(s.usage) if s.usage else {})} for s in samples]
    for row in rows:
        del row["behaviour"], row["usage"]
    if rows:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return bool(rows)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
