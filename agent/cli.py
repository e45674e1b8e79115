"""`solostream chat`: talk to an agent that has the interpreter, in the terminal."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Annotated, Any

import tyro

from agent.chat import Chat
from agent.engine import EngineError, Sampling
from agent.spec import open_engine
from agent.talk import Ran, Said, Talk
from envs.observation import observe
from sandbox.errors import SandboxError

# Escape sequences and other controls stay off the terminal: a model could recolour, retitle or rewrite it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HELP = "/reset starts anew, /quit or Ctrl+D ends, Ctrl+C stops an answer"


def chat(
    model: Annotated[str, tyro.conf.Positional],
    /,
    *,
    sandbox: str = "fork",
    system: str | None = None,
    syntax: str = "fence",
    temperature: float = 0.6,
    top_p: float = 0.95,
    top_k: int = 20,
    max_tokens: int = 32_768,
    tokenizer: str | None = None,
    seed: int = 0,
) -> int:
    """Talk to an agent that has the interpreter; its variables last as long as the conversation.

    Args:
        model: A model folder or Hugging Face id, vllm:PATH, http://HOST:PORT, chat:URL#MODEL, scripted:MODULE:FUNCTION.
        sandbox: Where its code runs.
        system: Instructions instead of the usual ones; "" for none.
        syntax: How it writes calls: fence, code, python, hermes or openai.
        temperature: 0 is greedy.
        top_p: Of sampling.
        top_k: 0 is off.
        max_tokens: Of the whole conversation.
        tokenizer: Where it differs from the model's.
        seed: Of sampling.
    """
    from sandbox import open_sandbox

    box = open_sandbox(sandbox)
    with asyncio.Runner() as runner:
        try:
            engine, words = runner.run(open_engine(model, tokenizer=tokenizer, slots=1, max_len=max_tokens, seed=seed))
        except EngineError as error:
            return _failed(error)
        room = min(max_tokens, getattr(engine, "max_len", max_tokens))
        sampling = Sampling(room, temperature, top_p, top_k, seed=seed)
        new = lambda: Talk(
            engine, Chat(words), runner.run(box.open()), sampling=sampling, room=room, system=system, syntax=syntax
        )
        try:
            talk = new()
            print(_faint(_HELP))
            while (text := _read()) is not None:
                if text == "/reset":
                    talk = new()
                elif text.startswith("/"):
                    print(_faint(_HELP))
                elif text:
                    _answer(runner, talk, text)
        finally:
            runner.run(box.close())
            runner.run(engine.close())
    return 0


def _answer(runner: asyncio.Runner, talk: Talk, text: str) -> None:
    try:
        runner.run(_show(talk, text))
    except KeyboardInterrupt:
        print(_faint("\n(stopped)"))
    except (EngineError, SandboxError) as error:
        print(flush=True)  # what it had said so far ends in the middle of a line
        _failed(error)


async def _show(talk: Talk, text: str) -> None:
    async for event in talk.say(text):
        if isinstance(event, Said):
            print(harmless(event.text), end="", flush=True)
        elif isinstance(event, Ran):
            shown = "\n".join(f"│ {line}" for line in harmless(observe(event.execution)).splitlines())
            print(("\n" if not event.call.code.endswith("\n") else "") + _faint(shown), flush=True)
    print()


def harmless(text: str) -> str:
    """Text without control characters other than tab and newline."""
    return _CONTROL.sub("␛", text)


def _read() -> str | None:
    """The next line of the user, None at the end."""
    try:
        text = input("\n› " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    return None if text == "/quit" else text


def _faint(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


def _failed(error: Any) -> int:
    print(f"solostream: {error}", file=sys.stderr)
    return 1
