"""Traces of other people: one conversation in every layout, masks by hand, bad lines, replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solostream.agent.chat_template import Chat
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.envs.data.trace_rows import BadTrace
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


PLAIN = f"{FENCE}\nOutput:\n```\n{OUT}\n```\n{END}"
SPELLINGS: dict[str, list[dict[str, Any]]] = {
    "a plain fence behind a line": [{"role": "assistant", "content": PLAIN}],
    "the same in bold": [{"role": "assistant", "content": PLAIN.replace("Output:", "**Execution Result:**")}],
    "a fence and tags": [
        {"role": "assistant", "content": f"{FENCE}<interpreter>\n{OUT}\n</interpreter>\n{END}"}
    ],
    "OpenMathInstruct": [{"role": "assistant", "content":
        f"{SAY}\n<llm-code>\n{CODE}\n</llm-code>\n<llm-code-output>\n{OUT}\n</llm-code-output>\n{END}"}],
    "a tool that is framed": [*TOLD[1:2], {"role": "tool", "content": f"<interpreter>\n{OUT}\n</interpreter>"},
                              {"role": "assistant", "content": END}],
    **{
        f"the user says {shown!r}": [*TOLD[1:2], {"role": "user", "content": shown},
                                     {"role": "assistant", "content": END}]
        for shown in (f"```output\n{OUT}\n```", f"<interpreter>{OUT}</interpreter>", f"Output:\n{OUT}\n",
                      f"Code execution result: \n```\n{OUT}\n```", f"<tool_response>\n{OUT}\n</tool_response>")
    },
}  # fmt: skip


@pytest.mark.parametrize("said", SPELLINGS.values(), ids=SPELLINGS)
def test_an_output_may_be_spelt_in_many_ways(tmp_path: Path, said: list[dict[str, Any]]) -> None:
    (trace,), bad = read(tmp_path, {"messages": [USER, *said]})
    assert not bad
    assert [(m["role"], m["content"].replace(OUT + "\n", OUT)) for m in trace.messages] == [
        ("user", ASK), ("assistant", FENCE), ("tool", OUT), ("assistant", END)
    ]  # fmt: skip


def test_a_question_is_no_output(tmp_path: Path) -> None:
    """Only behind a call, and only where all of the message is one."""
    after = lambda said, asked: [USER, {"role": "assistant", "content": said}, {"role": "user", "content": asked},
                                 {"role": "assistant", "content": END}]  # fmt: skip
    rows = [after("Which code?", "Output: 42"), after(FENCE, "It said:\n```output\n42\n```\nWhy?")]
    (trace,), bad = read(tmp_path, *({"messages": row} for row in rows))
    assert [m["role"] for m in trace.messages] == ["user", "assistant", "user", "assistant"]
    ((why, lines),) = bad.items()
    assert lines == [2]
    assert "1 call and 0 outputs" in why
    assert "<interpreter>" in why


def test_code_before_a_call_is_not_drawn_into_it(tmp_path: Path) -> None:
    text = f"<code>y</code> is no call.\n<code>\n{CODE}\n</code><interpreter>\n{OUT}\n</interpreter>\n{END}"
    _, bad = read(tmp_path, {"prompt": ASK, "completion": text})
    assert not bad
    (trace,), bad = read(tmp_path, {"prompt": ASK, "completion": text}, syntax=("fence",))
    assert [call.code for call in trace.calls] == [CODE]
    assert trace.messages[1]["content"].startswith("<code>y</code> is no call.")


def test_what_a_text_syntax_cannot_say_is_told_with_its_name(tmp_path: Path) -> None:
    arguments = {"code": CODE, "timeout": 30, "env": "py3"}
    call = {"function": {"name": "python", "arguments": json.dumps(arguments)}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, TOLD[2],
                        {"role": "assistant", "content": END}]}  # fmt: skip
    _, bad = read(tmp_path, row)
    assert list(bad) == [
        "a call of python with env, timeout beside its code, which alone 'fence' writes: drop env, timeout"
    ]
    (trace,), _ = read(tmp_path, row, syntax=("hermes",))
    assert trace.calls[0].arguments == arguments


@pytest.mark.parametrize(("name", "no"), [("weight", 0), ("train", False), ("training", False), ("loss", False)])
def test_a_turn_of_weight_0_is_read_and_not_learnt(tmp_path: Path, name: str, no: Any) -> None:
    """In the spellings of OpenAI and ShareGPT, axolotl and ms-swift."""
    row = {"messages": [*TOLD[:1], {**TOLD[1], name: no}, TOLD[2], {"role": "assistant", "content": END, name: 1},
                        USER, {"role": "assistant", "content": "42", name: None}]}  # fmt: skip
    (trace,), bad = read(tmp_path, row)
    assert not bad
    chat, env = Chat(byte_tokenizer()), ToolEnv()
    ids, mask = render(trace, chat, env)
    assert chat.tokenizer.decode(ids[mask]) == f"{END}<|im_end|>42<|im_end|>"
    (whole,), _ = read(tmp_path, {"messages": [{k: v for k, v in m.items() if k != name} for m in row["messages"]]})
    assert ids.tolist() == render(whole, chat, env)[0].tolist()


def test_a_weight_between_0_and_1_is_told(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": END}
    odd = ({"weight": 0.3}, {"train": "no"}, {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]})
    rows = [[USER, {**said, **one}] for one in (*odd, {"weight": 0})]
    inline = {"role": "assistant", "content": PLAIN, "weight": 0}
    traces, bad = read(tmp_path, *({"messages": row} for row in [*rows, [USER, inline], [USER, inline, USER, said]]))
    assert list(bad) == [
        "weight = 0.3 at a message: 1 (it is learnt) or 0 (it is only read)",
        "train = 'no' at a message: 1 (it is learnt) or 0 (it is only read)",
        "train_detail at a message, which is learnt whole or not at all: write train = true or false",
        "no turn of the assistant is learnt: all have weight 0",
    ]
    assert list(bad.values()) == [[1], [2], [3], [4, 5]]
    (trace,) = traces  # both halves of the turn that is split are of its weight
    ids, mask = render(trace, Chat(byte_tokenizer()), ToolEnv())
    assert byte_tokenizer().decode(ids[mask]) == f"{END}<|im_end|>"


def test_a_turn_ends_once(tmp_path: Path) -> None:
    """Tokens that end a turn are left out where a text ends in them, and refused within it."""
    end, chat = "<|im_end|>", Chat(byte_tokenizer())
    rows = [
        [
            USER,
            {"role": "assistant", "content": FENCE + end},
            TOLD[2],
            {"role": "assistant", "content": f"{END}{end}\n{end}"},
        ],
        [USER, {"role": "assistant", "content": "4"}, USER, {"role": "assistant", "content": f"a{end}b"}],
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    traces, bad, _ = read_traces(str(path), ("fence",), False, chat.ends)
    assert not bad
    ids, mask = render(traces[0], chat, ToolEnv())
    assert chat.tokenizer.decode(ids[mask]) == f"{FENCE}{END}{end}"
    with pytest.raises(BadTrace, match=r"<\|im_end\|> within what the assistant says"):
        render(traces[1], chat, ToolEnv())


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
        8: "the role 'critic'", 9: "0 calls and 1 output in", 10: "1 call and 0 outputs", 11: "text between a call",
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
    unread = [{"role": "assistant", "content": "<tool_call>\n{python\n</tool_call>"},
              {"role": "tool", "content": "Error: this call could not be read: not JSON."}]  # fmt: skip
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
        {"messages": [USER, *unread, *TOLD[1:], {"role": "assistant", "content": END}]},
        syntax=("hermes",),
    )
    assert not bad
    sandbox = open_sandbox("fork")
    try:
        limit = asyncio.Semaphore(3)
        found = [await _contradiction(trace, sandbox, 5.0, limit) for trace in traces]
        other = "the sandbox gives another output"
        assert found == ["", other, "", other, "", "", "a call of 'search', which is not replayed", ""]
    finally:
        await sandbox.close()
