"""What `distill` writes of a rollout is learnt as it was, token for token: every syntax, with and without thoughts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from solostream import registry
from solostream.agent.chat_template import CHATML, Chat
from solostream.agent.engine import Sampling
from solostream.agent.engines.scripted import ScriptedEngine, byte_tokenizer
from solostream.agent.rollout import fit_to, rollout
from solostream.agent.trajectory import Trajectory
from solostream.cli.distill import _messages
from solostream.envs.data.traces import trace_of
from solostream.envs.text.syntax import syntax as syntax_of
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.evaluation.evaluate import system_text
from solostream.training.sft.trace_set import render

TASK = Task("product", "What is 17 * 3?", "51")
THINKS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
TEMPLATES = {
    "plain": CHATML,
    "opens": THINKS,
    "opens without a line": CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"),
}
UNREADABLE = "<function=python>1</function>"  # in every syntax


def written(syntax: str, code: str) -> str:
    return syntax_of(syntax).write("python", {"code": code})


def turns(syntax: str, thinks: bool) -> list[str]:
    """A call that cannot be read, one that is not closed, one that fails, two that are right, and the answer."""
    calls = [written(syntax, code) for code in ("print(seventeen * 3)", "x = 17", "print(x * 3)")]
    half = calls[0][: len(calls[0]) * 4 // 5]
    said = ["Let me try.\n" + UNREADABLE, "Or:\n" + half, "Again.\n" + calls[0], "A name first.\n" + calls[1], calls[2]]
    if not thinks:
        return [*said, "So it is \\boxed{51}."]
    # thoughts that are closed before the call, within which it stands, without a word, and around the answer
    said[1:3] = ["Hm.\n</think>\n\n" + one for one in said[1:3]]
    return [*said[:4], "\n</think>\n\n" + said[4], "Yes.</think>\\boxed{51}"]


async def played(said: list[str], template: str, **options: Any) -> tuple[Trajectory, Chat, ToolEnv]:
    chat, env = Chat(byte_tokenizer(), template), ToolEnv([TASK], **options)
    unsaid = iter(said)
    engine = ScriptedEngine(lambda text: next(unsaid))
    trajectory = await rollout(env, engine, chat, sampling=Sampling(2000), max_tokens=20_000)
    await env.aclose()
    return trajectory, chat, env


def learnt(trajectory: Trajectory, teacher: Chat, chat: Chat, env: ToolEnv) -> tuple[list[int], list[bool]]:
    """The trace of it, through a file, as `chat` renders it."""
    messages = _messages(trajectory, TASK.prompt, system_text(env), teacher.thought_opener)
    row = json.loads(json.dumps({"messages": messages}))
    fit_to(chat, env)
    ids, mask = render(trace_of(row, env.syntax, env.parallel_calls, 1, chat.ends), chat, env)
    return ids.tolist(), mask.tolist()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("syntax", [name for name in registry.BUILT_IN["syntax"] if hasattr(syntax_of(name), "write")])
async def test_a_rollout_is_learnt_as_it_was(syntax: str, template: str) -> None:
    trajectory, chat, env = await played(turns(syntax, template != CHATML), template, syntax=syntax)
    assert trajectory.reward == 1.0
    assert trajectory.n_calls == (4 if syntax == "llama" else 3)  # which reads the half one, too
    ids, mask = learnt(trajectory, chat, chat, env)
    assert chat.tokenizer.decode(ids) == chat.tokenizer.decode(trajectory.token_ids)
    assert mask == trajectory.action_mask.tolist()


@pytest.mark.parametrize("system", [None, "", "Be brief. \n"], ids=["its own", "none", "another"])
@pytest.mark.parametrize("syntax", ["fence", "code", "hermes"])
async def test_examples_stand_once_before_the_problem(syntax: str, system: str | None) -> None:
    """The environment brings them again: in the trace they would stand twice, the first time as a system message."""
    said = turns(syntax, thinks=False)
    trajectory, chat, env = await played(said, CHATML, syntax=syntax, few_shot=2, system_prompt=system)
    assert trajectory.reward == 1.0
    ids, mask = learnt(trajectory, chat, chat, env)
    assert chat.tokenizer.decode(ids) == chat.tokenizer.decode(trajectory.token_ids)
    assert mask == trajectory.action_mask.tolist()
    without = ToolEnv([TASK], syntax=syntax, system_prompt=system)
    played_without = (await played(said, CHATML, syntax=syntax, system_prompt=system))[0]
    assert learnt(trajectory, chat, chat, without)[0] == played_without.token_ids.tolist()


async def test_thoughts_go_over_to_a_template_that_opens_none_and_back() -> None:
    said = turns("hermes", thinks=True)
    trajectory, thinking, env = await played(said, THINKS, syntax="hermes")
    plain = Chat(byte_tokenizer(), CHATML)
    ids, mask = learnt(trajectory, thinking, plain, env)
    spoken = plain.tokenizer.decode([token for token, own in zip(ids, mask, strict=True) if own])
    assert spoken.replace("<|im_end|>", "") == "".join(f"<think>\n{turn}" for turn in said)

    other, _, env = await played([f"<think>\n{turn}" for turn in said], CHATML, syntax="hermes")
    ids, mask = learnt(other, plain, thinking, env)
    assert (ids, mask) == (trajectory.token_ids.tolist(), trajectory.action_mask.tolist())
