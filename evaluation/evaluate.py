"""Evaluate a policy: k samples a problem, many at a time, on disk as they finish, resumable at any point.

A sample's seed follows from the evaluation's seed, the problem and the sample's number alone: an interrupted evaluation
that is resumed asks for exactly the samples that are missing. Infrastructure failures are no samples: they are counted,
not written, and asked for again by the next call.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import tyro

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine, EngineError, Sampling, checked
from solostream.agent.engines.spec import open_engine
from solostream.agent.rollout import rollout, seed_of
from solostream.agent.run_settings import registered, run_settings
from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.envs.rewards.grading import equivalent
from solostream.envs.text.prompts import system_prompt
from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.evaluation.metrics import Sample, summarize
from solostream.evaluation.samples import reduce

ENV = "solostream/Math-v0"
SAMPLES, SUMMARY, TABLE = "samples.jsonl", "summary.json", "samples.parquet"
ENGINE_TRIES = 3  # of one sample, with a pause between them, before the evaluation stops


@dataclass(frozen=True, slots=True)
class Preset:
    """Sampling of a kind of evaluation; max_tokens is of the whole episode, prompt included; turn_tokens of a turn."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int = 32_768
    turn_tokens: int | None = None

    def turn(self, room: int | None = None) -> Sampling:
        """Of one turn. room: tokens of the episode where they are fewer than `max_tokens`."""
        room = self.max_tokens if room is None else room
        tokens = room if self.turn_tokens is None else min(self.turn_tokens, room)
        return Sampling(tokens, self.temperature, self.top_p, self.top_k)


# "sampled" is the papers' setting (SPO arXiv 2509.13232, ASPO arXiv 2508.19201).
PRESETS: Mapping[str, Preset] = {"sampled": Preset(0.6, 0.95, 20), "greedy": Preset(0.0, 1.0, 0)}


@dataclass(frozen=True)
class Options:
    """What `solostream eval` takes. A model that a run saved is played as in that run, unless options say otherwise."""

    model: tyro.conf.Positional[str]
    """A model folder or Hugging Face id, vllm:PATH, http://HOST:PORT, chat:URL#MODEL, or scripted:MODULE:FUNCTION."""
    env: str | None = None
    """A registered environment; default: the run's, else solostream/Math-v0."""
    data: str | None = None
    """Problems: a preset (aime25, math-500, …), a file, a folder or a Hugging Face id; default: what the run held out,
    else the environment's."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 1
    """Samples a problem."""
    out: Path | None = None
    """Output folder; default: evals/MODEL-DATA. An evaluation that is there already is resumed."""
    preset: Literal["sampled", "greedy"] | None = None
    """sampled: temperature 0.6, top-p 0.95, top-k 20, as in the papers. greedy: temperature 0. Default: as the run
    evaluates, else sampled."""
    temperature: float | None = None
    """Instead of the preset's."""
    top_p: float | None = None
    """Instead of the preset's."""
    top_k: int | None = None
    """Instead of the preset's; 0 is off."""
    max_tokens: int | None = None
    """Of an episode, prompt included; default: the run's, else 32768, or the model's context where that is less."""
    turn_tokens: int | None = None
    """Of one turn; default: the run's, else as many as the episode has."""
    tools: bool = True
    """--no-tools: text only, one turn, no interpreter."""
    env_options: str = "{}"
    """More settings of the environment, on top of the run's, as JSON: '{"max_turns": 4, "sandbox": "docker"}'."""
    limit: int | None = None
    """Only the first problems."""
    concurrency: int = 32
    """Episodes at a time."""
    tokenizer: str | None = None
    """Where it differs from the model's."""
    seed: int = 0
    """Of all samples."""

    def settled(self) -> Options:
        """With the settings of the run that saved the model, if one did, where the options say nothing. Settling twice
        changes nothing more. Raises UserError."""
        run = run_settings(self.model)
        if run is None:
            return self
        given = self.settings()
        merged = run.under(given)
        if self.data is not None or self.env not in (None, run.env):
            merged = {name: value for name, value in merged.items() if name != "tasks" or name in given}
        names = ["env", "max_tokens", "turn_tokens", *(() if self.preset else ("temperature", "top_p", "top_k"))]
        open_ones = {name: getattr(run, name) for name in names if getattr(self, name) is None}
        return replace(self, **open_ones, env_options=json.dumps(merged))

    def settings(self) -> dict[str, Any]:
        """`env_options` as a mapping. Raises UserError."""
        try:
            found = json.loads(self.env_options)
        except ValueError as error:
            raise UserError(f"--env-options is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise UserError("--env-options must be a JSON object, for example '{\"max_turns\": 4}'")
        return found

    def sampling(self) -> Preset:
        """The preset with the options' own values. Raises UserError."""
        base = PRESETS[self.preset or "sampled"]
        own = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "max_tokens", "turn_tokens")}
        chosen = Preset(**{name: getattr(base, name) if value is None else value for name, value in own.items()})
        checked(chosen.turn())
        if self.k < 1 or self.concurrency < 1 or (self.limit is not None and self.limit < 1):
            raise UserError("-k, --concurrency and --limit must be at least 1")
        if chosen.temperature == 0 and self.k > 1:
            raise UserError(f"greedy samples are all the same: -k {self.k} would play each {self.k} times; use -k 1")
        return chosen

    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        run = run_settings(self.model)
        model = re.sub(r"[^\w.-]+", "-", self.model.rstrip("/").rpartition("/")[2] or self.model).strip("-")
        model = f"{run.run}-{model}" if run else model  # step-000060 alone says nothing
        env = self.env or (run.env if run else ENV)
        data = re.sub(r"[^\w.-]+", "-", Path(self.data or env.rpartition("/")[2]).stem)
        return Path("evals") / f"{model}-{data}{'' if self.tools else '-text'}{'-greedy' * (self.preset == 'greedy')}"

    def identity(self) -> dict[str, Any]:
        """What the samples depend on, of settled options: a resumed evaluation must agree in all of it."""
        names = ("model", "data", "tools", "env_options", "seed")
        return {"env": self.env or ENV, **{name: getattr(self, name) for name in names}, **asdict(self.sampling())}


@dataclass(slots=True)
class Progress:
    """Where an evaluation stands. `samples` holds what was found on disk and what finished since."""

    total: int
    samples: list[Sample] = field(default_factory=list)
    infra: int = 0
    damaged: int = 0
    found: int = 0  # of `samples`, those of an earlier call
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

    report: called after every sample. Raises UserError before anything is played; EngineError when the engine stays
    down. Whatever happens, finished samples are on disk and summary.json describes them.
    """
    options = options.settled()
    preset = options.sampling()
    folder = options.folder()
    tasks, make = _environment(options)
    done, progress = _open_folder(folder, options, tasks)
    engine, tokenizer = await open_engine(
        options.model,
        tokenizer=options.tokenizer,
        slots=options.concurrency,
        max_len=options.max_tokens,
        seed=options.seed,
    )
    missing = iter([(task, i) for i in range(options.k) for task in tasks if (task.id, i) not in done])
    file = (folder / SAMPLES).open("a", encoding="utf-8")
    try:
        chat = Chat(tokenizer)
        player = _Player(engine, chat, preset, options.seed)
        progress.started = time.monotonic()
        report(progress)

        async def work() -> None:
            env = make(tokenizer)
            try:
                for task, sample in missing:
                    trajectory = await player.play(env, task, sample)
                    if trajectory.ending == "infra":
                        progress.infra += 1
                    else:
                        record = {**trajectory.to_dict(), "sample": sample, "prompt": task.prompt}
                        file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
                        file.flush()
                        progress.samples.append(reduce(trajectory))
                    report(progress)
            finally:
                await env.aclose()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(options.concurrency, max(progress.total - len(done), 1))):
                group.create_task(work())
    except BaseExceptionGroup as errors:  # of the workers: one that says what is wrong is enough
        raise _first(errors) from None
    finally:
        file.close()
        await engine.close()
        summary = _write_summary(folder, options, progress)
    return summary


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
        try:
            return gymnasium.make(env, disable_env_checker=True, tokenizer=tokenizer, **settings).unwrapped
        except TypeError as error:
            raise UserError(f"{env} does not take these settings: {error}") from None

    first = make(None)
    tasks = first.tasks[: options.limit]
    first.close()
    return tasks, make


def _open_folder(folder: Path, options: Options, tasks: Sequence[Task]) -> tuple[set[tuple[str, int]], Progress]:
    """What is there already. A torn last line is cut off. Raises UserError when another evaluation is there."""
    folder.mkdir(parents=True, exist_ok=True)
    identity, place, path = options.identity(), folder / "identity.json", folder / SAMPLES
    if place.exists() and path.exists() and path.stat().st_size:  # without a sample there is nothing to mix up
        try:
            before, now = _spread(json.loads(place.read_text())), _spread(identity)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"cannot read {place}: choose another --out, or remove that folder") from None
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed:
            what = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
            raise UserError(f"{folder} holds another evaluation ({what}); choose another --out, or remove that folder")
    place.write_text(json.dumps(identity, indent=2) + "\n")
    path.touch()
    progress = Progress(total=len(tasks) * options.k)
    wanted = {(task.id, i) for task in tasks for i in range(options.k)}
    done: set[tuple[str, int]] = set()
    end = 0
    for line in read_lines(path):
        end = line.offset + line.length
        if line.trajectory is None or line.record is None:
            progress.damaged += 1
            continue
        key = (line.trajectory.task_id, line.record.get("sample", -1))
        if key in wanted and key not in done:
            done.add(key)
            progress.samples.append(reduce(line.trajectory))
    if path.stat().st_size > end:
        os.truncate(path, end)
    progress.found = len(done)
    return done, progress


def _spread(identity: Mapping[str, Any]) -> dict[str, Any]:
    """`identity` with one entry a setting of the environment."""
    options = {f"env_options.{name}": value for name, value in json.loads(identity["env_options"]).items()}
    return {**{name: value for name, value in identity.items() if name != "env_options"}, **options}


def _write_summary(folder: Path, options: Options, progress: Progress) -> dict[str, Any]:
    summary = {
        "config": {**options.identity(), "k": options.k, "limit": options.limit},
        "complete": len(progress.samples) == progress.total,
        "expected": progress.total,
        "infra": progress.infra,
        "damaged": progress.damaged,
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
