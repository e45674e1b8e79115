"""Traces as users have them: line ends of Windows, outputs within a turn, calls of tools that are not there."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from solostream.agent.chat_template import Chat
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.cli.main import main
from solostream.envs.data.trace_rows import BadTrace
from solostream.envs.data.traces import trace_of
from solostream.envs.text.parse import parse
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.training.sft.trace_set import _of_no_test, render
from tests.training.sft.test_traces import ASK, CODE, END, FENCE, LAYOUTS, OUT, SAY, USER, read


def ended(tree: Any, end: str) -> Any:
    """Every text of a row with `end` for a newline, also in arguments that are JSON."""
    if isinstance(tree, dict):
        return {key: ended(value, end) for key, value in tree.items()}
    if isinstance(tree, list):
        return [ended(value, end) for value in tree]
    return tree.replace("\n", end).replace("\\n", json.dumps(end)[1:-1]) if isinstance(tree, str) else tree


@pytest.mark.parametrize("syntax", ["fence", "retool", "hermes"])
@pytest.mark.parametrize("end", ["\r\n", "\r"], ids=["Windows", "Mac"])
@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_line_ends_of_other_systems_are_read_as_newlines(tmp_path: Path, row: Any, end: str, syntax: str) -> None:
    said = f"{SAY}\n{END}"  # behind the call, too
    row = json.loads(json.dumps(row).replace(json.dumps(END)[1:-1], json.dumps(said)[1:-1]))
    (trace,), _ = read(tmp_path, row, syntax=(syntax,))
    (other,), bad = read(tmp_path, ended(row, end), syntax=(syntax,))
    assert not bad
    assert (other.messages, other.outputs) == (trace.messages, trace.outputs)
    assert other.messages[-1]["content"] == said
    assert [call.code for call in other.calls] == [CODE]


def test_a_progress_bar_stays_as_the_environment_shows_it(tmp_path: Path) -> None:
    row = json.loads(json.dumps(LAYOUTS["OpenAI"]))
    row["messages"][2]["content"] = "10 %\r20 %\r\n42"
    (trace,), _ = read(tmp_path, row)
    assert trace.outputs == ("10 %\r20 %\n42",)


def test_a_held_out_problem_is_known_by_other_line_ends(tmp_path: Path) -> None:
    asked = "What is\r\n6 * 7?"
    rows = [{"prompt": one, "completion": END} for one in (asked, ASK)]
    traces, _ = read(tmp_path, *rows)
    told: list[str] = []
    (kept,) = _of_no_test(traces, [Task("a", asked, "42")], "traces", told.append)  # type: ignore[arg-type]
    assert kept.messages[0] == USER
    assert told == ["traces: 1 of 2 traces are of held-out problems: left out of training"]


def hermes(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


CALL = f"{SAY}\n{hermes('python', code=CODE)}"
XML = f"{SAY}\n<tool_call>\n<function=python>\n<parameter=code>\n{CODE}\n</parameter>\n</function>\n</tool_call>"
SHOWN = f"<tool_response>\n{OUT}\n</tool_response>"
INLINE = {
    "Hermes": f"{CALL}\n{SHOWN}\n{END}",
    "Hermes without lines": f"{CALL}{SHOWN}{END}",
    "Hermes twice": f"{CALL}\n{SHOWN}\n{CALL}\n{SHOWN}\n{END}",
    "Qwen's XML": f"{XML}\n{SHOWN}\n{END}",
    "Gemini": f"{FENCE.replace('python', 'tool_code')}```tool_outputs\n{OUT}\n```\n{END}",
    **{
        f"{tag} behind a {kind}": f"{said}\n<{tag}>\n{OUT}\n</{tag}>\n{END}"
        for tag in ("tool_result", "tool_output", "function_results", "execution_result", "code_output", "observation",
                    "output", "result")
        for kind, said in {"call": CALL, "fence": FENCE}.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("syntax", ["fence", "hermes", "retool", "qwen_xml"])
@pytest.mark.parametrize("text", INLINE.values(), ids=INLINE)
def test_outputs_within_a_turn_are_not_learnt(tmp_path: Path, text: str, syntax: str) -> None:
    (trace,), bad = read(tmp_path, {"messages": [USER, {"role": "assistant", "content": text}]}, syntax=(syntax,))
    assert not bad
    times = text.count(SAY)
    assert [m["role"] for m in trace.messages] == ["user", *["assistant", "tool"] * times, "assistant"]
    assert [call.code for call in trace.calls] == [CODE] * times
    assert trace.outputs == (OUT,) * times
    chat = Chat(byte_tokenizer())
    ids, mask = render(trace, chat, ToolEnv(syntax=syntax))
    learnt = chat.tokenizer.decode(ids[mask]).replace("<|im_end|>", "")
    assert learnt == "".join(m["content"] for m in trace.messages if m["role"] == "assistant")
    assert learnt.replace("\n\n", "\n").startswith(f"{SAY}\n")
    assert learnt.endswith(END)
    assert learnt.count(OUT) == END.count(OUT)
    assert [call.code for call in parse(learnt, syntax).calls] == [CODE] * times


def test_outputs_of_several_calls_within_a_turn(tmp_path: Path) -> None:
    calls = [hermes("search", query="6 * 7"), hermes("python", code=CODE)]
    said = "\n".join([*calls, "<tool_response>found</tool_response>", SHOWN, END])
    row = {"messages": [USER, {"role": "assistant", "content": said, "weight": 0}, USER,
                        {"role": "assistant", "content": END}]}  # fmt: skip
    (trace,), bad = read(tmp_path, row, syntax=("hermes",), parallel=True)
    assert not bad
    assert [call.name for call in trace.calls] == ["search", "python"]
    assert trace.outputs == ("found", OUT)
    assert [m.get("weight") for m in trace.messages if m["role"] == "assistant"] == ["0", "0", None]
    assert trace.messages[1]["content"] == "\n".join(calls)
    assert trace.messages[4]["content"] == END


LEFT = {
    "no call before it": (f"{SHOWN}\n{END}", "<tool_response>"),
    "only the end of it": (f"{OUT}\n</interpreter>\n{END}", "</interpreter>"),
    "a fence behind words": (f"It prints:\n\n```output\n{OUT}\n```\n{END}", "```output"),
    "a fence in a quotation": (f"> ```output\n> {OUT}\n> ```\n{END}", "> ```output"),
    "another": (f"<execute>{CODE}</execute>\n<execution_result>{OUT}</execution_result>\n{END}", "<execution_result>"),
    "Search-R1": (f"<search>x</search>\n\n<information>{OUT}</information>\n{END}", "</search> <information>"),
    "Mistral": (f"[TOOL_RESULTS]{OUT}[/TOOL_RESULTS]{END}", "[TOOL_RESULTS]"),
    "DeepSeek": (f"<｜tool▁outputs▁begin｜>{OUT}<｜tool▁outputs▁end｜>{END}", "<｜tool▁outputs▁begin｜>"),
}


@pytest.mark.parametrize(("text", "mark"), LEFT.values(), ids=LEFT)
def test_outputs_that_nothing_splits_off_are_told_by_line(tmp_path: Path, text: str, mark: str) -> None:
    said = {"role": "assistant", "content": text}
    whole = [USER, {"role": "assistant", "content": END}]
    rows = [whole, [USER, said], [USER, {**said, "weight": 0}, *whole]]
    traces, bad = read(tmp_path, *({"messages": row} for row in rows))
    assert [trace.line for trace in traces] == [1, 3]
    ((why, lines),) = bad.items()
    assert (why.startswith(f"{mark} within what the assistant says"), lines) == (True, [2])
    assert "`tool` message" in why


def test_words_between_a_call_and_its_output_are_told_in_every_syntax(tmp_path: Path) -> None:
    row = {"prompt": ASK, "completion": f"{CALL}\nIt prints:\n{SHOWN}\n{END}"}
    for syntax in ("fence", "hermes"):  # prose to the one, to the other a call without an output
        assert list(read(tmp_path, row, syntax=(syntax,))[1].values()) == [[1]]


@pytest.mark.parametrize("syntax", ["fence", "hermes", "retool"])
def test_code_may_print_an_output_and_words_may_hold_its_tags(tmp_path: Path, syntax: str) -> None:
    code = 'print("<tool_response>", """\n```output\n""", "<observation>")'
    end = f"The program's <output> is\n```text\n{OUT}\n```\nHence <result>{OUT}</result>. {END}"
    call = {"function": {"name": "python", "arguments": {"code": code}}}
    row = {"messages": [USER, {"role": "assistant", "content": SAY, "tool_calls": [call]},
                        {"role": "tool", "content": "```output\n"}, {"role": "assistant", "content": end}]}  # fmt: skip
    (trace,), bad = read(tmp_path, row, syntax=(syntax,))
    assert not bad
    assert [one.code for one in trace.calls] == [code]
    assert trace.messages[-1]["content"] == end


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def called(name: str, arguments: dict[str, str], output: str = OUT) -> dict[str, Any]:
    """A row as for function calling: the tools that it was made with, a call, what came of it, an answer."""
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {
        "tools": [{"type": "function", "function": WEATHER}],
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]},
                     {"role": "tool", "tool_call_id": "1", "content": output}, {"role": "assistant", "content": END}],
    }  # fmt: skip


def test_a_call_of_a_tool_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traces.jsonl"
    rows = [called("weather", {"city": "Rome"}), called("python", {"code": CODE}), called("run_code", {"code": CODE})]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny = Path(__file__).parents[1] / "run" / "tiny.toml"
    settings = (
        f"run.root={tmp_path}",
        f"cold_start.data={path}",
        "cold_start.phases=[]",
        'env.options.syntax="hermes"',
    )
    assert main(["sft", str(tiny), "--name", "a", *(part for one in settings for part in ("--set", one))]) == 2
    said = capsys.readouterr().err
    assert (
        "line 1: a call of 'weather', which the environment has not (its tools: python): name it in env.options.tools; "
        "line 3: a call of 'run_code', which the environment has not (its tools: python): write python for it. "
        "Fix these, or set cold_start.skip_bad = true"
    ) in said
    assert said.count("\n") == 1


def test_calls_of_tools_that_are_there_or_were_said_not_to_be(tmp_path: Path) -> None:
    rows = [called("weather", {"city": "Rome"}), called("weather", {}, "Error: no such tool; there is: python")]
    for tools, row in ((("python", "weather"), rows[0]), (None, rows[0]), (("python",), rows[1])):
        (call,) = trace_of(row, ("hermes",), False, tools=tools).calls
        assert call.name == "weather"
    unlearnt = json.loads(json.dumps(rows[0]))
    unlearnt["messages"][1]["weight"] = 0
    trace_of(unlearnt, ("hermes",), False, tools=("python",))
    with pytest.raises(BadTrace, match="its tools: none"):
        trace_of(rows[0], ("hermes",), False, tools=())


RUN_PYTHON = ("python", "python3", "functions.python", "code_interpreter", "codeinterpreter", "execute_python", "run",
              "PythonREPL", "python_repl_ast", "execute_ipython_cell", "jupyter_code_executor")  # fmt: skip
RUN_NONE = {"airport": "code", "bash": "script", "search": "input", "run_sql": "code"}


@pytest.mark.parametrize(
    ("name", "key", "runs"),
    [
        *((name, "code", True) for name in RUN_PYTHON),
        *(("python", key, True) for key in ("source", "input", "script")),
        *((name, key, False) for name, key in RUN_NONE.items()),
    ],
)
def test_only_what_runs_python_is_written_as_python(name: str, key: str, runs: bool) -> None:
    row = called(name, {key: CODE})
    told = pytest.raises(BadTrace, match=f"a call of {name} that is no Python: name it in env.options.tools")
    with nullcontext() if runs else told:
        assert [(call.name, call.code) for call in trace_of(row, ("fence",), False).calls] == [("python", CODE)]
