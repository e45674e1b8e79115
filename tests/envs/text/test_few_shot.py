"""Calls as each syntax writes them, and examples before the question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solostream import registry
from solostream.envs import ToolEnv
from solostream.envs.data.traces import read_traces
from solostream.envs.few_shot import BUILT_IN
from solostream.envs.text.answers import find_answer
from solostream.envs.text.observation import observe
from solostream.envs.text.parse import parse
from solostream.envs.text.syntax import syntax as syntax_of
from solostream.errors import UserError
from solostream.sandbox import open_sandbox

ODD = 's = "</tool_call> ``` </code "\nif 1 < 2:\n\tprint(f"{s!r}\\n", [{"a": \'é\'}])'
TASKS = [{"prompt": "What is 6 * 7?", "answer": "42"}]


@pytest.mark.parametrize("name", list(registry.BUILT_IN["syntax"]))
def test_what_a_syntax_writes_it_reads(name: str) -> None:
    one = syntax_of(name)
    said = "So:\n" + one.write("python", {"code": ODD})
    (call,) = parse(said, (name,)).calls
    assert (call.name, dict(call.arguments), call.status) == ("python", {"code": ODD}, "ok")
    assert said[call.span[1] :].strip() == ""
    if one.tools:
        (call,) = parse(one.write("search", {"query": "x, y)]", "k": 3}), (name,)).calls
        assert (call.name, call.status) == ("search", "ok")
        assert {key: str(value) for key, value in call.arguments.items()} == {"query": "x, y)]", "k": "3"}


@pytest.mark.parametrize("style", ["boxed", "line", "tag", "last_number", "auto"])
@pytest.mark.parametrize("name", list(registry.BUILT_IN["syntax"]))
def test_built_in_examples_call_and_answer_as_the_environment_reads_it(name: str, style: str) -> None:
    env = ToolEnv(TASKS, syntax=name, answer=style, few_shot=3, system_prompt="Be brief.")
    env.reset(seed=0)
    rows = [json.loads(line) for line in BUILT_IN.read_text().splitlines()][:3]
    roles = [message["role"] for message in env.opening]
    assert roles == ["system", *["user", "assistant", "tool", "assistant"] * 3, "user"]
    for row, at in zip(rows, (1, 5, 9), strict=True):
        asked, called, seen, said = env.opening[at : at + 4]
        (call,) = parse(called["content"], (name,)).calls
        found = find_answer(said["content"], parse(said["content"], (name,)), style)
        assert asked["content"] == row["question"]
        assert (call.code, call.status) == (row["code"], "ok")
        assert row["output"] in seen["content"]
        assert found is not None
        assert found.answer == row["answer"]
    env.close()


def test_outputs_of_built_in_examples_are_what_the_sandbox_prints() -> None:
    import asyncio

    async def run() -> None:
        box = open_sandbox("fork")
        session = await box.open()
        for line in BUILT_IN.read_text().splitlines():
            row = json.loads(line)
            assert observe(await session.run(row["code"], timeout=10)) == row["output"] == row["answer"]
        await session.close()
        await box.close()

    asyncio.run(run())


def test_a_file_of_ones_own_in_any_layout_and_an_edited_one(tmp_path: Path) -> None:
    place = tmp_path / "mine.jsonl"
    called = "I compute.\n<code>\nprint(2 + 2)\n</code>"
    row: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "Not this one."},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": f"{called}\n<interpreter>\n4\n</interpreter>\n\\boxed{{4}}"},
        ]
    }
    place.write_text(json.dumps(row) + "\n")
    env = ToolEnv(TASKS, few_shot=str(place), syntax="retool", system_prompt="")
    env.reset(seed=0)
    assert [message["content"] for message in env.opening] == [
        "2 + 2?", called, "<interpreter>\n4\n</interpreter>", "\\boxed{4}",
        TASKS[0]["prompt"],
    ]  # fmt: skip
    inline = ToolEnv(TASKS, few_shot=[row], syntax="retool", system_prompt="")
    assert inline.instructions == env.instructions
    row["messages"][1]["content"] = "What is two and two?"
    place.write_text(json.dumps(row) + "\n")
    assert ToolEnv(TASKS, few_shot=str(place), syntax="retool").instructions[1]["content"] == "What is two and two?"
    text_only = ToolEnv(TASKS, few_shot=str(place), tools=(), parallel_calls=True, system_prompt="")
    assert [m["content"] for m in text_only.instructions] == ["What is two and two?", "\\boxed{4}"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"few_shot": 9}, "0 to 4 built-in examples"),
        ({"few_shot": -1}, "0 to 4 built-in examples"),
        ({"few_shot": True}, "0 to 4 built-in examples"),
        ({"few_shot": "gone.jsonl"}, "No such file"),
        ({"few_shot": [{"text": "x"}]}, "example 1: no messages"),
        ({"few_shot": 2, "tools": ["calculator"], "syntax": "hermes"}, "the examples call ['python']"),
    ],
)
def test_what_is_no_example_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as told:
        ToolEnv(TASKS, **options)
    assert said in str(told.value)


def test_bad_lines_of_a_file_are_told(tmp_path: Path) -> None:
    place = tmp_path / "mine.jsonl"
    place.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q"}\n[1]\n')
    with pytest.raises(UserError) as told:
        ToolEnv(TASKS, few_shot=str(place))
    assert "line 2: no messages" in str(told.value)
    assert "line 3: not an object" in str(told.value)
    assert len(read_traces(str(place), ("fence",), False)[0]) == 1
