"""The parts of a run, made from its configuration; whatever is wrong with them is said before anything is computed."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from solostream import registry
from solostream.agent.chat_template import Chat, read_template
from solostream.agent.engine import Engine
from solostream.agent.engines import four_bit
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.engines.pretrained import vocabulary_hash
from solostream.agent.engines.spec import opened
from solostream.agent.rollout import fit_to
from solostream.agent.run_settings import RunSettings, run_settings
from solostream.disk import writing
from solostream.envs import data, making
from solostream.envs.data import Tasks
from solostream.envs.data.forms import make_form
from solostream.envs.making import takes_tasks
from solostream.envs.text_env import HELD_OUT, seeds
from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.sandbox.types import Sandbox
from solostream.training.advantages.base import Advantage
from solostream.training.cluster.rank_sharding import refuse_unshardable
from solostream.training.config import Config, ModelConfig, colocation
from solostream.training.config.dry_run import exceeds, refuse_too_large, shared_device
from solostream.training.config.memory import offloads
from solostream.training.config.memory.lengths import Longest
from solostream.training.config.memory.weights import learners, rank_to_send, small_base
from solostream.training.learner.device import compute_dtype, device_of, sampler_dtype
from solostream.training.learner.lora import wrap
from solostream.training.learner.optimizer import low_memory
from solostream.training.learner.optimizer.on_host import HostMasters
from solostream.training.learner.streaming import check_in_parts
from solostream.training.losses import Loss
from solostream.training.rollouts.samplers.inner import sampler_of_run
from solostream.training.run.model import (
    config_of,
    context_of,
    load_model,
    load_tokenizer,
    sampler_model,
    tokenizer_here,
    without_weights,
)
from solostream.training.sft.demonstrations import FILLERS, boxed, fence

GENERATED = 512  # problems in the pool where the configuration does not say how many
LONGEST = 32  # prompts (in characters) of which the longest in tokens sizes the engine's context


@dataclass(frozen=True, slots=True)
class Components:
    """`model` (of transformers) is the one that learns; `max_tokens` bounds a ledger, prompt included.

    masters: of the model, where the optimizer works on the host.
    """

    train: Tasks
    test: Tasks
    model: Any
    tokenizer: Any
    chat: Chat
    max_tokens: int
    longest: Longest
    masters: HostMasters | None = None


def build(
    config: Config,
    train: Tasks,
    test: Tasks,
    sft_batches: Sequence[Task],
    source: Path | None = None,
    base: Path | None = None,
    say: Callable[[str], None] = print,
    cold_start_only: bool = False,
) -> Components:
    """`sft_batches`: problems of the cold start, for a built tokenizer to learn from. Raises UserError.

    source: a checkpoint that has the weights and the tokenizer. base: where the weights are instead, under adapters.
    say: told where the plan of memory is more than is free. cold_start_only: that of this phase.
    """
    found = base or source
    where = config.model.model_copy(update={"path": str(found)}) if found else config.model
    device = device_of(config.model.device)
    colocation.check_device(config, str(device))
    refuse_modules(config, where)
    tokenizer = load_tokenizer(where, _corpus([*sft_batches, *train]))
    chat = _chat(config, tokenizer, source)
    longest = _longest(config, where, train, test, tokenizer, chat)
    if config.cluster.learners == 1:  # the plan of memory knows one device
        refuse_too_large(config, str(device), longest, cold_start_only=cold_start_only)
        if said := exceeds(config, str(device), longest, cold_start_only=cold_start_only):
            say(said)
    offload = offloads(config, device.type)
    model, _ = load_model(
        where,
        seed=config.run.seed,
        tokenizer=tokenizer,
        adapters=small_base(config),
        shape_only=config.cluster.learners > 1,
        on_host=offload,
    )
    masters = HostMasters(model, device, compute_dtype(config.learner.dtype, device)) if offload else None
    if config.cluster.learners > 1:
        refuse_unshardable(model)
    tokenizer.chat_template = chat.template  # saved with the model
    _refuse_too_long(config, model, longest.prompt or 0)
    return Components(train, test, model, tokenizer, chat, longest.episode(config), longest, masters)


def refuse_modules(config: Config, where: ModelConfig) -> None:
    """Raises UserError for what the model `where` has no modules or no room for, before its weights are read."""
    for learner in learners(config).values():
        _refuse_too_long(config, wrap(without_weights(where), learner.lora), prompt=1)


def _refuse_too_long(config: Config, model: Any, prompt: int) -> None:
    """prompt: tokens of the longest that is known."""
    context = context_of(model.config)
    if prompt + config.env.episode_tokens > context:
        raise UserError(
            f"env.episode_tokens = {config.env.episode_tokens} and a prompt of {prompt} tokens exceed the model's "
            f"context of {context}: lower episode_tokens to {max(context - prompt, 0)} or less"
        )


def _chat(config: Config, tokenizer: Any, source: Path | None) -> Chat:
    """With the date on which the run began, also where it goes on from the checkpoint `source`. Raises UserError."""
    m = config.model
    earlier = run_settings(str(source)) if source else None
    date = m.date or (earlier.date if earlier else None) or datetime.date.today().isoformat()
    return Chat(tokenizer, read_template(m.chat_template), variables=m.chat_template_kwargs, date=date)


def refuse_learning(config: Config, advantage: Advantage | None = None, loss: Loss | None = None) -> None:
    """Raises UserError for what the second phase would refuse, which may begin hours after the first.

    advantage, loss: instead of what the configuration names.
    """
    for learner in (config.learner, config.cold_start.learner):
        low_memory.check(learner)
    if config.model.dtype == "4bit":
        four_bit.check()
    if config.rollout.learn_in_parts > 1:
        a, name = config.algorithm, config.learner.loss
        advantage = advantage or a.stand_ins()[-1]
        check_in_parts(advantage, config.learner, loss or registry.make("loss", name, config.loss.get(name)))


def problems(config: Config, say: Callable[[str], None] = print) -> tuple[Tasks, Tasks]:
    """(pool, held-out problems), without a common prompt or id. Raises UserError, also for a sampler without use."""
    train, test = _problems(config, say)
    sampler_of_run(config, train, config.algorithm.tracker.make(), uses_tracker=config.algorithm.uses_tracker)
    return train, test


def _problems(config: Config, say: Callable[[str], None]) -> tuple[Tasks, Tasks]:
    if not takes_tasks(config.env.id):
        return _seeds(config)
    train, test = (data.tasks(source) for source in sources(config))
    if config.data.path is None:
        return train, test
    held_out = {task.prompt for task in test}
    kept = [task for task in train if task.prompt not in held_out]
    if len(kept) < len(train):
        say(f"{len(train) - len(kept)} training problems are held out as well: left out of training")
    if not kept:
        raise UserError("every training problem is held out as well: give data.test_path, or data.test_share")
    if {task.id for task in kept} & test.by_id.keys():  # two files that both count from 1
        test = Tasks(replace(task, id=f"test/{task.id}") for task in test)
    return Tasks(kept[: config.data.train]), test


def _seeds(config: Config) -> tuple[Tasks, Tasks]:
    """The episodes of an environment that draws its own: one a seed. Raises UserError."""
    if config.data.path is not None:
        raise UserError(f"{config.env.id} takes no tasks, so nothing would read data.path: leave it out")
    env = making.make(config.env.id, _env_options(config))
    try:
        return seeds(env, 0, config.data.train or GENERATED), seeds(env, HELD_OUT, config.data.test)
    finally:
        env.close()


def sources(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `solostream.envs.data.tasks` takes for the pool, and for the held-out problems. Raises UserError."""
    d = config.data
    if d.path is not None:
        rows = {"columns": d.columns, "layout": d.layout, "config": d.config, "skip_bad": d.skip_bad}
        given = {name: value for name, value in rows.items() if value}
        train, test = data.train_and_test(
            d.path,
            test_path=d.test_path,
            split=d.split,
            test_split=d.test_split,
            test_share=d.test_share,
            seed=d.seed,
            made=d.made,
            **given,
        )
        if "seed" in train:  # made: as many as are asked for
            train = {**train, "limit": d.train or GENERATED}
        return train, {**test, "limit": d.test}
    chosen = {name: list(value) for name, value in (("kinds", d.kinds), ("levels", d.levels)) if value}
    generated = {"seed": d.seed, **chosen}
    return {"generate": d.train or GENERATED, "split": "train", **generated}, {
        "generate": d.test,
        "split": "test",
        **generated,
    }


def described(config: Config) -> str:
    """Where the problems come from, for a person."""
    if config.data.path is None:
        return "generated"
    train, test = sources(config)

    def place(source: Mapping[str, Any]) -> str:
        return " ".join(str(source[key]) for key in ("load", "split") if key in source)

    if "test_share" in train:
        return f"{place(train)}, of which {train['test_share']:.0%} are held out"
    return f"{place(train)}, tested with {place(test)}"


def environment(config: Config, tasks: Tasks, tokenizer: Any, sandbox: Callable[..., Sandbox] | None = None) -> Any:
    """One environment for one episode at a time. Raises UserError for an unknown id, or options it does not take."""
    options = {"tasks": tasks, "tokenizer": lambda: tokenizer, **_env_options(config)}  # gymnasium copies: a factory
    if sandbox is not None:
        options["sandbox"] = sandbox
    return making.make(config.env.id, options)


def _env_options(config: Config) -> dict[str, Any]:
    e = config.env
    return {
        "sandbox": e.sandbox,
        "max_turns": e.max_turns,
        "timeout_s": e.timeout_s,
        "output_tokens": e.output_tokens,
        **e.options,
    }


async def open_engine(config: Config, parts: Components, slots: int, module: Callable[[], Any]) -> Engine:
    """A sampler of the model's shape; its weights come with the first `load_weights`. Raises UserError.

    module: makes a model of that shape (`module_beside`), for engines that bring none.
    """
    name, path = config.run.engine, config.model.path
    options = {
        **shared_device(config, str(device_of(config.model.device)), parts.longest),
        **config.engine.get(name, {}),
    }
    with tempfile.TemporaryDirectory(prefix="solostream-model-") as folder:
        if path == "build" and not registry.asks("engine", name, "module"):  # it reads the shapes from a folder
            with writing(Path(folder)):
                module().save_pretrained(folder)
                parts.tokenizer.save_pretrained(folder)
            path = folder
        engine = await opened(
            name,
            options,
            model=path,
            module=module,
            tokenizer=parts.tokenizer if registry.asks("engine", name, "module") else None,
            slots=slots,
            max_len=parts.max_tokens,
            seed=config.run.seed,
            dtype=str(sampler_dtype(config.model, device_of(config.model.device))).removeprefix("torch."),
            reproducible=config.rollout.mode != "async",
            lora_rank=rank_to_send(config),
            transfer=config.cluster.transfer,
        )
    wrong = _unfit(engine, parts)
    if wrong:
        await engine.close()
        raise UserError(f"engine '{name}' {wrong}")
    return engine


def module_beside(config: Config, model: Any) -> Any:
    """For a sampler in the learner's process: over the learner's own weights, or over a copy where it must be one."""
    if why_a_second_copy(config, model) is None:
        return LiveWeights(model).module()
    return sampler_model(model.config, sampler_dtype(config.model, model.device), model.device)


def why_a_second_copy(config: Config, model: Any) -> str | None:
    """Why an engine in this process cannot sample from the parameters that the learner trains; None where it can."""
    wanted, learned = sampler_dtype(config.model, model.device), next(model.parameters()).dtype
    if wanted != learned:
        return f"the sampler's weights are {str(wanted).removeprefix('torch.')}"
    c = config.learner
    if config.rollout.mode == "lockstep":
        return "in lockstep it samples under the weights from before the update that goes on"
    if config.rollout.mode == "async" and c.num_mini_batches * c.epochs > 1:
        return "an update takes several steps, and rollouts go on between them"
    return None


def _unfit(engine: Engine, parts: Components) -> str:
    """Why an engine that brings its own model cannot sample for this policy; empty where it can."""
    tokenizer = getattr(engine, "tokenizer", parts.tokenizer)
    max_len = getattr(engine, "max_len", parts.max_tokens)
    if tokenizer is not parts.tokenizer and vocabulary_hash(tokenizer) != vocabulary_hash(parts.tokenizer):
        return "has a model with another vocabulary: serve the one of model.path"
    if max_len < parts.max_tokens:
        return f"has a context of {max_len} tokens: start it with --max-model-len {parts.max_tokens}"
    return ""


def write_settings(config: Config, run: str, parts: Components, folder: Path) -> None:
    """Beside a model, tokenizer and chat template, and how the run `run` evaluates: `solostream eval` goes by it."""
    parts.tokenizer.save_pretrained(folder)
    env_options = {"tasks": sources(config)[1], **_env_options(config)}
    temperature, tokens = config.eval.temperature, config.env.turn_tokens
    chat = parts.chat.variables, parts.chat.date
    played = _played_alike(config)
    RunSettings(run, config.env.id, env_options, temperature, 1.0, 0, tokens, parts.max_tokens, *chat, *played).write(
        folder
    )


def _played_alike(config: Config) -> tuple[str | None, dict[str, Any]]:
    """The rollout strategy and its options, where it also holds when the policy is evaluated."""
    name = config.rollout.strategy
    if name == "episode" or not getattr(registry.load("rollout", name), "of_the_policy", False):
        return None, {}
    return name, dict((config.rollout.model_extra or {}).get(name) or {})


def _longest_prompt(config: Config, tasks: Tasks, tokenizer: Any, chat: Chat) -> int:
    """Tokens of the longest opening, measured on the longest texts."""
    env = environment(config, tasks, tokenizer)
    try:
        longest = sorted([*tasks, *_forms(config, tasks)], key=lambda task: len(task.prompt))[-LONGEST:]
        fit_to(chat, env)
        openings = [env.reset(options={"task_id": task.id})[1]["messages"] for task in longest]
        return max(len(chat.open(messages, env.tools)) for messages in openings)
    finally:
        env.close()


def _longest(
    config: Config, where: ModelConfig, train: Tasks, test: Tasks, tokenizer: Any, chat: Chat, *, here: bool = False
) -> Longest:
    """here: of traces on this machine."""
    from solostream.training.sft.trace_set import longest_trace  # which needs this module

    trace = longest_trace(config, test, tokenizer, chat, here=here)
    if trace:
        trace = min(trace, context_of(config_of(where)))  # a longer one is refused, or left out
    return Longest(_longest_prompt(config, Tasks((*train, *test)), tokenizer, chat), trace)


def planned_longest(config: Config, train: Tasks, test: Tasks, of_cold_start: Sequence[Task]) -> Longest:
    """As `build` counts, which `of_cold_start` is of, too; guessed where the tokenizer is not on this machine.

    Raises UserError.
    """
    tokenizer = tokenizer_here(config.model, _corpus([*of_cold_start, *train]))
    if tokenizer is None:
        return Longest()
    return _longest(config, config.model, train, test, tokenizer, _chat(config, tokenizer, None), here=True)


def _forms(config: Config, tasks: Tasks) -> list[Task]:
    """Of the longest tasks, what the sampler may make of them."""
    found: list[Task] = []
    for form in getattr(registry.load("sampler", config.algorithm.task_sampler), "forms", ()):
        made = (make_form(task, form, tasks) for task in tasks)
        found += sorted((task for task in made if task), key=lambda task: len(task.prompt))[-LONGEST:]
    return found


def _corpus(tasks: Sequence[Task]) -> list[str]:
    """What the policy of a built model will read and write: problems, code, answers."""
    code = [fence(str(task.meta["code"])) for task in tasks if "code" in task.meta]
    return [*(task.prompt for task in tasks), *code, *(boxed(task.answer) for task in tasks), *FILLERS * 50]
