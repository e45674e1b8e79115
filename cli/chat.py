"""`solostream chat`: converse to an agent that has the interpreter, in the terminal."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import tyro

from solostream.agent.chat_template import Chat, read_template
from solostream.agent.conversation import Ran, Said, Talk
from solostream.agent.engine import Engine, EngineError, check_seed, checked
from solostream.agent.engines.spec import open_engine
from solostream.agent.run_settings import RunSettings, registered, run_settings
from solostream.envs.few_shot import examples
from solostream.envs.text.budgets import clip, token_counter
from solostream.envs.text.observation import observe
from solostream.envs.text.prompts import system_prompt
from solostream.envs.text.syntax import framed, syntaxes
from solostream.errors import SandboxError
from solostream.evaluation.options import PRESETS, SamplingPreset, json_object

# Escape sequences and other controls stay off the terminal: a model could recolour, retitle or rewrite it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HELP = "/reset starts anew, /quit or Ctrl+D ends, Ctrl+C stops an answer"


def chat(
    model: Annotated[str, tyro.conf.Positional],
    /,
    *,
    sandbox: str | None = None,
    system: str | None = None,
    syntax: str | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_tokens: int = 32_768,
    turn_tokens: int | None = None,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: str | None = None,
    date: str | None = None,
    seed: int | None = None,
    api_key_env: str | None = None,
) -> int:
    """Talk to an agent that has the interpreter; its variables last as long as the conversation.

    A model that a training run saved goes on under that run's settings, unless options say otherwise.

    Args:
        model: A model folder or Hugging Face id, vllm:PATH, http://HOST:PORT, chat:URL#MODEL, scripted:MODULE:FUNCTION.
        sandbox: Where its code runs; default: as in the run, else fork.
        system: Instructions instead of the run's or the usual ones; "" for none.
        syntax: How it writes calls: auto (as its chat template teaches), fence, code, hermes, harmony, llama, mistral,
            qwen_xml, …; default: as in the run, else fence.
        temperature: 0 is greedy; default: as the run evaluated, else 0.6 (chat: the server's own).
        top_p: Of sampling; default: as the run evaluated, else 0.95 (chat: the server's own).
        top_k: 0 is off; default: as the run evaluated, else 20 (chat: the server's own).
        max_tokens: Of the whole conversation.
        turn_tokens: Of one turn; default: as in the run, else as many as the conversation has.
        tokenizer: Where it differs from the model's.
        chat_template: Instead of the model's: a Jinja file, or chatml.
        chat_template_kwargs: What else it knows, as JSON: '{"enable_thinking": false}'; default: as in the run.
        date: That a template which prints today's is told; default: the run's, else 2025-01-01.
        seed: Of sampling; default: 0 (chat: none is sent).
        api_key_env: Environment variable that holds a server's key; default: OPENAI_API_KEY.
    """
    check_seed(seed)
    run, endpoint = run_settings(model), model.startswith("chat:")
    settings = _settings(run, sandbox=sandbox, system_prompt=system, syntax=syntax)
    sampled = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "turn_tokens": turn_tokens}
    preset = _preset(run, endpoint, max_tokens, sampled)
    variables = dict(run.chat_template_kwargs) if run else {}
    if chat_template_kwargs is not None:
        variables = json_object("--chat-template-kwargs", chat_template_kwargs, '{"enable_thinking": false}')
    template, date = read_template(chat_template), date or (run.date if run else None)
    rendering = partial(Chat, template=template, variables=variables, date=date)
    how: dict[str, Any] = {"slots": 1, "max_len": max_tokens, "seed": seed or 0, "api_key_env": api_key_env}
    opening = partial(open_engine, model, tokenizer=tokenizer, check=rendering, **how)
    return _converse(run, settings, preset, seed if endpoint else seed or 0, opening, rendering)


def _settings(run: RunSettings | None, **options: Any) -> dict[str, Any]:
    """The environment's settings: the run's, and above them the options that were given."""
    given = {name: value for name, value in options.items() if value is not None}
    return {**registered(run.env), **run.under(given)} if run else given


def _preset(run: RunSettings | None, endpoint: bool, max_tokens: int, options: Mapping[str, Any]) -> SamplingPreset:
    """How it samples: options that were given, else as the run evaluated. Raises ValueError for what cannot be."""
    # An endpoint has defaults of its own.
    like = run or (SamplingPreset(1.0, 1.0, 0) if endpoint else PRESETS["sampled"])
    chosen = {name: getattr(like, name) if value is None else value for name, value in options.items()}
    preset = SamplingPreset(max_tokens=max_tokens, **chosen)
    checked(preset.turn())
    return preset


def _converse(
    run: RunSettings | None,
    settings: Mapping[str, Any],
    preset: SamplingPreset,
    seed: int | None,
    opening: Callable[[], Coroutine[Any, Any, tuple[Engine, Any]]],
    rendering: Callable[[Any], Chat],
) -> int:
    """Open engine and sandbox, and talk until the user ends it. rendering: makes it of the model's tokenizer."""
    from solostream.sandbox import open_sandbox

    box = open_sandbox(settings.get("sandbox", "fork"), **(settings.get("sandbox_options") or {}))
    with asyncio.Runner() as runner:
        try:
            engine, tokenizer = runner.run(opening())
        except EngineError as error:
            return _failed(error)
        try:
            chat_format = rendering(tokenizer)
            room = min(preset.max_tokens, getattr(engine, "max_len", preset.max_tokens))
            sampling, manner = replace(preset.turn(room), seed=seed), _manner(settings, chat_format)

            def new() -> Talk:
                return Talk(engine, chat_format, runner.run(box.open()), sampling=sampling, room=room, **manner)

            converse = new()
            if run:
                print(_faint(f"{run}; options override"))
            print(_faint(_HELP))
            while (text := _read()) is not None:
                if text == "/reset":
                    converse = new()
                elif text.startswith("/"):
                    print(_faint(_HELP))
                elif text:
                    _answer(runner, converse, text)
        finally:
            runner.run(box.close())
            runner.run(engine.close())
    return 0


def _manner(settings: Mapping[str, Any], rendering: Chat) -> dict[str, Any]:
    """What `settings` of an environment mean for a conversation; where they say nothing, as `envs.ToolEnv` has it."""
    named, system = settings.get("syntax", "fence"), settings.get("system_prompt")
    syntax = syntaxes(rendering.syntax if named == "auto" else named)
    counter, cap = token_counter(rendering.tokenizer), settings.get("output_tokens", 1024)
    tracebacks, answer = settings.get("tracebacks", True), settings.get("answer", "boxed")
    system = system_prompt(syntax, answer) if system is None else system
    shown = examples(settings.get("few_shot", 0), syntax, answer, ("python",), False)
    return {
        "instructions": (*([{"role": "system", "content": system}] if system else []), *shown),
        "syntax": syntax,
        "think": settings.get("think", "run"),
        "timeout": settings.get("timeout_s"),
        "show": lambda execution: framed(syntax, clip(observe(execution, tracebacks=tracebacks), cap, counter)),
    }


def _answer(runner: asyncio.Runner, converse: Talk, text: str) -> None:
    try:
        runner.run(_show(converse, text))
    except KeyboardInterrupt:
        print(_faint("\n(stopped)"))
    except (EngineError, SandboxError) as error:
        print(flush=True)  # what it had said so far ends in the middle of a line
        _failed(error)


async def _show(converse: Talk, text: str) -> None:
    said = ""
    async for event in converse.say(text):
        if isinstance(event, Said):
            said += event.text
            print(harmless(event.text), end="", flush=True)
        elif isinstance(event, Ran):
            shown = "\n".join(f"│ {line}" for line in harmless(event.shown).splitlines())
            print(("" if said.endswith("\n") else "\n") + _faint(shown), flush=True)
    print()


def harmless(text: str) -> str:
    """Text without control characters other than tab and newline."""
    return _CONTROL.sub("␛", text)


def _read() -> str | None:
    """The next line of the user, None at the end."""
    try:
        text = input("\n› " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if text == "/quit" else text


def _faint(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


def _failed(error: Any) -> int:
    print(f"solostream: {error}", file=sys.stderr)
    return 1
