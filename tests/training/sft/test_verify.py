"""A trace that says what its code prints is kept: also where an environment cut the output, or added to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Sampling
from solostream.agent.engines.scripted import ScriptedEngine, byte_tokenizer
from solostream.agent.rollout import rollout
from solostream.cli.distill import _messages
from solostream.envs.data.traces import Trace, trace_of
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.evaluation.evaluate import system_text
from solostream.sandbox.spec import open_sandbox
from solostream.training.sft.trace_set import _contradiction

TASK = Task("many", "What is 6 * 7?", "42")
LONG = "for i in range(300):\n    print(i, 'squared is', i * i)"
DEEP = "def f(n):\n    return 1 / n if n == 0 else f(n - 1)\nf(60)"
OTHER = "the sandbox gives another output before or behind what was cut"


async def distilled(code: str, **options: Any) -> Trace:
    """A right sample whose one call is `code`, as `solostream distill` writes it."""
    chat, env = Chat(byte_tokenizer()), ToolEnv([TASK], **options)
    said = iter([f"```python\n{code}\n```\n", "\\boxed{42}"])
    played = await rollout(
        env, ScriptedEngine(lambda text: next(said)), chat, sampling=Sampling(900), max_tokens=20_000
    )
    await env.aclose()
    assert played.reward == 1.0
    return trace_of({"messages": _messages(played, TASK.prompt, system_text(env), "")}, env.syntax, False)


async def checked(*traces: Trace) -> list[str]:
    sandbox = open_sandbox("fork")
    try:
        return [await _contradiction(trace, sandbox, 5.0, asyncio.Semaphore(1)) for trace in traces]
    finally:
        await sandbox.close()


def outputs(trace: Trace, *texts: str) -> Trace:
    return Trace(trace.line, trace.messages, trace.calls, texts)


@pytest.mark.parametrize("code", [LONG, DEEP, "print('x' * 5000, end='')", "print('é🐍 ' * 900)"])
@pytest.mark.parametrize("options", [{"tokenizer": byte_tokenizer()}, {"show_budget": True}, {"tracebacks": False}])
async def test_an_output_that_was_cut_is_no_other_one(code: str, options: dict[str, Any]) -> None:
    trace = await distilled(code, output_tokens=90, **options)
    assert ("tokens cut …]" in trace.outputs[0]) == (code != DEEP or "tracebacks" not in options)
    assert await checked(trace) == [""]


async def test_what_stands_around_a_cut_is_compared() -> None:
    trace = await distilled(LONG, output_tokens=90)
    (said,) = trace.outputs
    head, _, tail = said.partition("\n[…")
    changed = [
        said.replace("0 squared is 0", "0 squared is 1", 1),
        said.replace("299 squared is 89401", "299 squared is 89402"),
        f"{head}{head}\n[…{tail}",  # more than there is
        f"{head} and\n[…{tail}",
    ]
    assert len({said, *changed}) == 5
    assert await checked(*(outputs(trace, one) for one in changed)) == [OTHER] * 4
    assert await checked(outputs(trace, "0 squared is 0")) == ["the sandbox gives another output"]
    short = await distilled("print('ab')")
    assert await checked(outputs(short, "ab\n[… 4 tokens cut …]\nab")) == [OTHER]  # they would overlap


async def test_a_program_may_print_a_mark_of_its_own() -> None:
    code = "print('[… 3 tokens cut …]')\n" + LONG + "\nprint('[… 3 tokens cut …]\\n[turns left: 2]')"
    whole, cut = await distilled(code, output_tokens=9000), await distilled(code, output_tokens=120)
    assert cut.outputs[0].count("tokens cut") == 3
    assert await checked(whole, cut) == ["", ""]
