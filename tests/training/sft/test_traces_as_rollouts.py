"""A rendered trace is what a rollout of the same words has, token for token, and the environment rewards it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from solostream.agent.chat_template import CHATML, Chat
from solostream.agent.engine import Sampling
from solostream.agent.engines.scripted import ScriptedEngine, byte_tokenizer
from solostream.agent.rollout import fit_to, rollout
from solostream.agent.trajectory import Trajectory
from solostream.envs.data.traces import trace_of
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.training.learner.packing import MaskedTokens
from solostream.training.sft.trace_set import render

ASK, CODE = "What is 17 * 3?", "print(17 * 3)"
TASK = Task("seventeen", ASK, "51")
FENCE = f"```python\n{CODE}\n```\n"
THINKS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
TEMPLATES = {
    "plain": CHATML,
    "opens": THINKS,
    "opens without a line": CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"),
    "opens with brackets": CHATML.replace("assistant\n{% endif", "assistant\n[THINK]{% endif"),
}


def conversation(*turns: str | dict[str, Any]) -> dict[str, Any]:
    """The question, turns of the assistant, and after each but the last what its code prints."""
    said = [turn if isinstance(turn, dict) else {"content": turn} for turn in turns]
    messages: list[dict[str, Any]] = [{"role": "user", "content": ASK}]
    for turn in said:
        messages += [{"role": "assistant", **turn}, {"role": "tool", "content": "51"}]
    return {"messages": messages[:-1]}


async def as_both(row: dict[str, Any], template: str, **options: Any) -> tuple[MaskedTokens, list[str], Trajectory]:
    """The row rendered, what its policy says, and the rollout of a policy that says just that."""
    chat, env = Chat(byte_tokenizer(), template), ToolEnv([TASK], **options)
    fit_to(chat, env)
    ids, mask = render(trace_of(row, env.syntax, env.parallel_calls), chat, env)
    said = []
    for learnt, run in groupby(zip(mask, ids, strict=True), key=lambda pair: bool(pair[0])):
        if learnt:
            said.append(chat.tokenizer.decode([token for _, token in run]).removesuffix("<|im_end|>"))
    unsaid = iter(said)
    played = await rollout(
        env, ScriptedEngine(lambda text: next(unsaid)), chat, sampling=Sampling(900), max_tokens=5000
    )
    await env.aclose()
    return (ids, mask), said, played


ROWS = {
    "an answer": conversation("\\boxed{51}"),
    "a call": conversation("Let me see.\n" + FENCE, "So it is \\boxed{51}."),
    "thoughts apart": conversation(
        {"content": FENCE, "reasoning_content": "A product."}, {"content": "\\boxed{51}", "reasoning_content": "Done."}
    ),
    "one thought": conversation({"content": FENCE, "reasoning_content": "A product."}, "\\boxed{51}"),
    "thoughts in the text": conversation(
        "<think>\nA product.\n</think>\n\n" + FENCE, "<think>Done.</think>\\boxed{51}"
    ),
    "a thought that its author's template opened": conversation("A product.\n</think>\n\n" + FENCE, "\\boxed{51}"),
    "a call within a thought": conversation("<think>\nA product.\n" + FENCE, "Yes.\n</think>\n\n\\boxed{51}"),
    "a tag in quotes": conversation("I know '</think>'.\n" + FENCE, "\\boxed{51}"),
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_a_right_trace_is_rewarded_and_has_the_ledger_of_its_rollout(row: Any, template: str) -> None:
    (ids, mask), _, played = await as_both(row, template)
    assert played.reward == 1.0
    assert byte_tokenizer().decode(ids) == byte_tokenizer().decode(played.token_ids)
    assert mask.tolist() == played.action_mask.tolist()


async def test_an_output_that_looks_like_the_end_of_a_turn_is_text() -> None:
    """As in the rollout, where a zero-width space breaks it."""
    row = conversation("```python\nprint('<|im_' + 'end|>')\n```\n", "\\boxed{51}")
    row["messages"][2]["content"] = "<|im_end|>"
    (ids, mask), _, played = await as_both(row, CHATML)
    assert "<\u200b|im_end|>" in byte_tokenizer().decode(ids)
    assert (ids.tolist(), mask.tolist()) == (played.token_ids.tolist(), played.action_mask.tolist())


async def test_what_is_said_where_the_template_opens_the_thought() -> None:
    said = {name: (await as_both(row, THINKS))[1] for name, row in ROWS.items()}
    empty = "\n</think>\n\n"
    assert said["an answer"] == [empty + "\\boxed{51}"]
    assert said["a call"] == [f"{empty}Let me see.\n{FENCE}", f"{empty}So it is \\boxed{{51}}."]
    assert said["thoughts apart"] == [f"A product.\n</think>\n\n{FENCE}", "Done.\n</think>\n\n\\boxed{51}"]
    assert said["thoughts in the text"][1] == "Done.</think>\\boxed{51}"
    assert said["a call within a thought"] == [f"A product.\n{FENCE}", "Yes.\n</think>\n\n\\boxed{51}"]
    assert said["a tag in quotes"][0] == f"{empty}I know '</think>'.\n{FENCE}"


async def test_a_thought_without_its_first_tag_gets_it_where_the_template_writes_none() -> None:
    _, said, _ = await as_both(ROWS["a thought that its author's template opened"], CHATML)
    assert said[0] == f"<think>\nA product.\n</think>\n\n{FENCE}"


@pytest.mark.parametrize("think", ["run", "skip"])
async def test_a_new_question_ends_an_open_thought(think: Any) -> None:
    row = conversation("<think>\nA product.\n" + FENCE, "Yes.")
    row["messages"] += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "\\boxed{51}"}]
    chat, env = Chat(byte_tokenizer(), THINKS), ToolEnv([TASK], think=think)
    fit_to(chat, env)
    ids, mask = render(trace_of(row, env.syntax, False), chat, env)
    end = "<|im_end|>" if think == "skip" else ""  # no call in a thought ends a turn there
    said = f"A product.\n{FENCE}{end}Yes.<|im_end|>\n</think>\n\n\\boxed{{51}}<|im_end|>"
    assert chat.tokenizer.decode(ids[mask]) == said


async def test_the_syntax_of_the_template_is_taken_on() -> None:
    """`auto`: calls are written as this template teaches, and a turn ends behind one."""
    row = conversation({"content": "", "tool_calls": [{"function": {"name": "python", "arguments": {"code": CODE}}}]},
                       "\\boxed{51}")  # fmt: skip
    (ids, mask), said, played = await as_both(row, THINKS + "{# <tool_call> #}", syntax="auto")
    assert said[0] == (
        '\n</think>\n\n<tool_call>\n{"name": "python", "arguments": {"code": "print(17 * 3)"}}\n</tool_call>'
    )
    assert played.reward == 1.0
    assert (ids.tolist(), mask.tolist()) == (played.token_ids.tolist(), played.action_mask.tolist())
