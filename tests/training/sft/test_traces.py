"""Traces of other people: one conversation in every layout, masks by hand, bad lines, replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solostream.agent.chat_template import Chat
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.envs.data.traces import read_traces
from solostream.envs.text.parse import parse
from solostream.envs.tool_env import ToolEnv
from solostream.training.sft.trace_set import _contradiction, render

ASK, CODE, OUT = "What is 6 * 7?", "x = 6 * 7\nprint(x)", "42"
SAY, END = "Let me compute.", "So it is \\boxed{42}."
FENCE = f"{SAY}\n```python\n{CODE}\n```\n"
CALL = {"id": "c", "type": "function", "function": {"name": "python", "arguments": json.dumps({"code": CODE})}}
USER = {"role": "user", "content": ASK}
TOLD = [USER, {"role": "assistant", "content": FENCE}, {"role": "tool", "content": OUT}]
LAYOUTS: dict[str, Any] = {
    "OpenAI": {
        "messages": [
            USER,
            {"role": "assistant", "content": SAY, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": OUT},
            {"role": "assistant", "content": [{"type": "text", "text": END}]},
        ]
    },
    "as text": {"messages": [*TOLD, {"role": "assistant", "content": END}]},
    "ReTool": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": f"{SAY}\n<code>\n```python\n{CODE}\n```\n</code>\n"
                f"<interpreter>\n{OUT}\n</interpreter>\n\n{END}",
            },
        ]
    },
    "fences with outputs": {"prompt": ASK, "completion": f"{FENCE}\n```output\n{OUT}\n```\n{END}"},
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": ASK},
            {"from": "gpt", "value": FENCE},
            {"from": "observation", "value": OUT},
            {"from": "gpt", "value": END},
        ]
    },
    "OpenAI's first": {
        "messages": [
            USER,
            {"role": "assistant", "content": SAY, "function_call": CALL["function"]},
            {"role": "function", "name": "python", "content": OUT},
            {"role": "assistant", "content": END},
        ]
    },
    "instruction": {"instruction": ASK, "input": "", "output": f"{FENCE}\n```output\n{OUT}\n```\n{END}"},
    "messages of two sides": {"prompt": [USER], "completion": [*TOLD[1:], {"role": "assistant", "content": END}]},
}  # fmt: skip


def read(tmp_path: Path, *rows: Any, syntax: tuple[str, ...] = ("fence",), parallel: bool = False) -> Any:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_traces(str(path), syntax, parallel)[:2]


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_the_same_conversation(tmp_path: Path, row: Any) -> None:
    (trace,), bad = read(tmp_path, row)
    assert not bad
    assert [(m["role"], m["content"]) for m in trace.messages] == [
        ("user", ASK), ("assistant", FENCE), ("tool", OUT), ("assistant", END)
    ]  # fmt: skip
    assert [call.code for call in trace.calls] == [CODE]
    assert trace.outputs == (OUT,)


@pytest.mark.parametrize("syntax", ["fence", "code", "python", "hermes", "openai"])
@pytest.mark.parametrize("row", [LAYOUTS["OpenAI"], LAYOUTS["ReTool"], LAYOUTS["ShareGPT"]], ids=["o", "r", "s"])
def test_calls_are_written_as_the_environment_reads_them(tmp_path: Path, row: Any, syntax: str) -> None:
    (trace,), bad = read(tmp_path, row, syntax=(syntax,))
    assert not bad
    said = trace.messages[1]["content"]
    (call,) = parse(said, syntax).calls
    assert (call.name, call.code, call.status) == ("python", CODE, "ok")
    assert said.startswith(SAY)
    assert call.span[1] == len(said)  # nothing behind it: an engine would have stopped there


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_only_what_the_policy_says_is_learnt(tmp_path: Path, row: Any) -> None:
    """The byte tokenizer has a token a byte: the mask, spelled out."""
    (trace,), _ = read(tmp_path, row)
    chat = Chat(byte_tokenizer())
    ids, mask = render(trace, chat, ToolEnv(system_prompt="Be brief."))
    texts = [
        (f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n", False),
        (FENCE, True),  # no end of turn: the call ended it
        (f"<|im_end|>\n<|im_start|>tool\n{OUT}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{END}<|im_end|>", True),
    ]
    encode = lambda text: chat.tokenizer.encode(text, add_special_tokens=False)
    assert ids.tolist() == [token for text, _ in texts for token in encode(text)]
    assert mask.tolist() == [learnt for text, learnt in texts for _ in encode(text)]


def test_a_text_of_messages_and_a_system_text_beside_them(tmp_path: Path) -> None:
    rows = [
        {"messages": json.dumps([USER, {"role": "assistant", "content": END}])},
        {"system": "Be brief.", "conversations": LAYOUTS["ShareGPT"]["conversations"]},
        {"messages": [{"role": "developer", "content": "Dev."}, USER,
                      {"role": "assistant", "content": END, "reasoning_content": "6 * 7 is 42."}]},
        {"messages": "no list"},
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    ]  # fmt: skip
    traces, bad = read(tmp_path, *rows)
    assert [m["role"] for m in traces[0].messages] == ["user", "assistant"]
    assert traces[1].messages[0] == {"role": "system", "content": "Be brief."}
    assert traces[2].messages[0] == {"role": "system", "content": "Dev."}
    assert traces[2].messages[-1]["content"] == f"<think>\n6 * 7 is 42.\n</think>\n\n{END}"
    assert traces[3].messages[0]["content"] == "Add.\n\n1 and 2"
    assert list(bad.values()) == [[4]]


def test_outputs_go_to_the_calls_that_they_name(tmp_path: Path) -> None:
    calls = [{**CALL, "id": name} for name in ("a", "b", "c")]
    told = [{"role": "tool", "tool_call_id": name, "content": f"of {name}"} for name in ("c", "a", "b")]
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}, *told,
                        {"role": "assistant", "content": END}]}  # fmt: skip
    (trace,), _ = read(tmp_path, row, syntax=("hermes",), parallel=True)
    assert trace.outputs == ("of a", "of b", "of c")


def test_traces_may_be_parquet_and_bad_rows_are_told_by_number(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    whole = [USER, {"role": "assistant", "content": END}]
    path = tmp_path / "traces.parquet"
    parquet.write_table(Table.from_pylist([{"messages": whole}, {"messages": [USER]}, {"messages": whole}]), path)
    traces, bad, at = read_traces(str(path), ("fence",), False)
    assert ([trace.line for trace in traces], list(bad.values()), at) == ([1, 3], [[2]], "row")


def test_the_packaged_traces_are_whole() -> None:
    traces, bad, _ = read_traces("first-calls", ("fence",), False)
    assert (len(traces), bad) == (120, {})
    assert all(len(trace.calls) == 1 and trace.outputs[0] in trace.messages[-1]["content"] for trace in traces)


def test_a_conversation_of_several_questions(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Own."}, USER, {"role": "assistant", "content": "42."}]
    messages += [{"role": "user", "content": "And 2?"}, {"role": "assistant", "content": "4."}]
    (trace,), _ = read(tmp_path, {"messages": messages})
    chat = Chat(byte_tokenizer())
    ids, mask = render(trace, chat, ToolEnv(system_prompt="The environment's."))
    text = chat.tokenizer.decode(ids)
    assert "Own." in text
    assert "The environment's." not in text
    assert chat.tokenizer.decode(ids[mask]) == "42.<|im_end|>4.<|im_end|>"


def test_two_calls_in_a_turn(tmp_path: Path) -> None:
    calls = [{**CALL, "id": "a"}, {**CALL, "id": "b"}]
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls},
                        {"role": "tool", "content": "42"}, {"role": "tool", "content": "43"},
                        {"role": "assistant", "content": END}]}  # fmt: skip
    (trace,), _ = read(tmp_path, row, syntax=("hermes",), parallel=True)
    assert (len(trace.calls), trace.outputs) == (2, ("42", "43"))
    _, bad = read(tmp_path, row, syntax=("hermes",))
    assert list(bad) == ["several calls in one turn: set parallel_calls = true in env.options"]


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a row."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(way for key, value in inside for way in places(value, (*path, key)))]


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_whatever_a_value_is_a_row_is_a_trace_or_is_told(tmp_path: Path, row: Any) -> None:
    """Every value of a good row in turn, replaced by one of another kind: nothing else is raised."""
    odd = (None, 5, 1.5, True, "x", "", [], {}, [5], {"a": 1}, [[USER]], [None], "\ud800")
    rows = [replaced(row, path, value) for path in places(row)[1:] for value in odd]
    traces, bad = read(tmp_path, *rows)
    assert sorted([trace.line for trace in traces] + [line for where in bad.values() for line in where]) == list(
        range(1, len(rows) + 1)
    )
    assert len(bad) > 3
    for trace in traces:
        assert all(message["content"].encode() is not None for message in trace.messages)  # it can be tokenised


def test_a_picture_is_told_not_left_out(tmp_path: Path) -> None:
    seen = [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "What is this?"}]
    _, bad = read(tmp_path, {"messages": [{"role": "user", "content": seen}, {"role": "assistant", "content": "42"}]})
    assert bad == {"a part of a message that is no text (image_url)": [1]}


def test_bad_lines_are_told_by_number_and_the_others_are_read(tmp_path: Path) -> None:
    tool = {"role": "tool", "content": OUT}
    rows = [
        LAYOUTS["OpenAI"],
        "{not json",
        [1],
        {"text": "x"},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": [USER]},
        {"messages": [USER, {"role": "critic", "content": "hm"}, {"role": "assistant", "content": "x"}]},
        {"messages": [USER, {"role": "assistant", "content": "no call"}, tool, {"role": "assistant", "content": END}]},
        {"messages": [USER, {"role": "assistant", "content": FENCE}, {"role": "assistant", "content": END}]},
        {"messages": [USER, {"role": "assistant", "content": FENCE + "more"}, tool,
                      {"role": "assistant", "content": END}]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
                      tool, {"role": "assistant", "content": END}]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
            {"function": {"name": "search", "arguments": '{"query": "x"}'}}]},
                      tool, {"role": "assistant", "content": END}]},
        {"messages": [USER, {"role": "assistant", "content": 7}]},
        {"prompt": ASK, "completion": "  "},
        LAYOUTS["ReTool"],
        {"text": "y"},
        {"messages": [USER, tool, {"role": "assistant", "content": END}]},
    ]  # fmt: skip
    traces, bad = read(tmp_path, *rows)
    assert [trace.line for trace in traces] == [1, 16]
    lines = {line: why for why, where in bad.items() for line in where}
    expected = {
        2: "not JSON", 3: "not an object", 4: "no messages", 5: "no message", 6: "no prompt", 7: "ends with a user",
        8: "the role 'critic'", 9: "0 calls and 1 outputs", 10: "1 calls and 0 outputs", 11: "text between a call",
        12: "without a name", 13: "syntax = 'hermes'", 14: "without text", 15: "says nothing", 17: "no messages",
        18: "before anything was called",
    }  # fmt: skip
    assert lines.keys() == expected.keys()
    for line, words in expected.items():
        assert words in lines[line], (line, lines[line])


async def test_a_trace_that_the_sandbox_contradicts_is_found(tmp_path: Path) -> None:
    import asyncio

    from solostream.sandbox.spec import open_sandbox

    def row(*steps: tuple[str, str]) -> Any:
        messages: list[Any] = [USER]
        for code, output in steps:
            messages += [{"role": "assistant", "content": f"```python\n{code}\n```\n"}]
            messages += [{"role": "tool", "content": output}]
        return {"messages": [*messages, {"role": "assistant", "content": END}]}

    search = {"id": "s", "type": "function", "function": {"name": "search", "arguments": '{"query": "x"}'}}
    looked_up = [{"role": "assistant", "content": None, "tool_calls": [search]},
                 {"role": "tool", "tool_call_id": "s", "content": "42"}]  # fmt: skip
    traces, bad = read(
        tmp_path,
        row(("x = 5\nprint(x)", "5"), ("x * 9", "45\n")),  # state lasts; white space at the ends does not count
        row(("x = 5\nprint(x)", "5"), ("x * 9", "46")),
        row(
            ("1 / 0", 'Traceback (most recent call last):\n  File "a.py", line 1\nZeroDivisionError: division by zero')
        ),
        row(("1 / 0", "ZeroDivisionError: division by nought")),
        row(("y", "NameError: name 'y' is not defined")),
        {"messages": [USER, {"role": "assistant", "content": "no code at all"}]},
        {"messages": [USER, *looked_up, {"role": "assistant", "content": END}]},
        syntax=("hermes",),
    )
    assert not bad
    sandbox = open_sandbox("fork")
    try:
        limit = asyncio.Semaphore(3)
        found = [await _contradiction(trace, sandbox, 5.0, limit) for trace in traces]
        other = "the sandbox gives another output"
        assert found == ["", other, "", other, "", "", "a call of 'search', which is not replayed"]
    finally:
        await sandbox.close()
