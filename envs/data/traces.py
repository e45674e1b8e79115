"""Conversations that somebody else wrote, with the calls as the policy of an environment writes them.

They are the traces of a cold start and the examples of a few-shot prompt.

Layouts, a row each (JSON lines, Parquet, a data set of the Hugging Face Hub): OpenAI `messages` (content as text or
parts, `tool_calls` or `function_call`, `tool` messages), ShareGPT `conversations` (`from`/`value`, `system` beside
them), `prompt` and `completion` or `response` (text or messages), `instruction`, `input` and `output`. An assistant's
text may hold calls with their outputs, as ReTool writes them (`<code>…</code><interpreter>…</interpreter>`) or fences
(```python, then ```output, or a plain one behind "Output:"), or as `<tool_call>…</tool_call><tool_response>…`: it is
split where the interpreter spoke. A message of the user that is such an output, behind a call, is one. What cannot be a
trace is told by its number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solostream.envs.data import sources
from solostream.envs.data.trace_rows import BadTrace, decoded, messages_of, with_newlines
from solostream.envs.text.parse import parse
from solostream.envs.text.syntax import framed
from solostream.envs.text.syntax import syntax as syntax_of
from solostream.envs.types import NO_SUCH_TOOL, UNREADABLE, ToolCall
from solostream.errors import UserError

SHOWN = 5  # kinds of bad rows that a message lists
PACKAGED = ("first-calls",)  # traces that come with the package
# How an output stands in a text: in tags, in a fence that says so, or in a plain one behind a line that does.
# The first tags are an environment's alone; <output> and <result> are words that any text may hold.
_OWN_TAGS = (
    r"interpreter|llm-code-output|observation|(?:tool|function)_(?:response|result|output)s?"
    r"|(?:code|execution|python)_(?:result|output)s?"
)
_TAGGED = rf"<(?P<shown>{_OWN_TAGS}|output|result)>(?P<seen>.*?)</(?P=shown)>"
_LABEL = r"[*_#\s]{0,8}(?:code )?(?:execution )?(?:output|results?|stdout)[*_]{0,2}:[*_]{0,2}"
_SEEN = (
    rf"(?:(?:{_LABEL}\s*)?(?:{_TAGGED}|```(?:output|text|console|stdout|tool_outputs?)[ \t]*\n(?P<out>.*?)^```[ \t]*$)"
    rf"|{_LABEL}\s*^```[ \t]*\n(?P<plain>.*?)^```[ \t]*$)"
)
_FLAGS = re.DOTALL | re.MULTILINE | re.IGNORECASE
# A call and what came of it, within one text. Of a call that names its tool only the end is looked for: any may be it.
_INLINE = re.compile(
    r"(?:<(?P<call>code|python|llm-code)>(?P<tag>(?:(?!</(?P=call)>).)*)</(?P=call)>"
    r"|^```(?:python3?|py|tool_code)[ \t]*\n(?P<fence>(?:(?!```)[^\n]*\n)*)```[ \t]*\n"
    r"|(?P<named></tool_call>))\s*" + _SEEN,
    _FLAGS,
)
# The same in a message of its own: all of it is the output.
_ANSWER = re.compile(rf"\s*(?:{_SEEN}|{_LABEL}(?P<rest>.*))\s*\Z", _FLAGS)
_ANSWERS = re.compile(rf"\s*{_TAGGED}", _FLAGS)  # of several calls, one after the other
_FRAMED = re.compile(r"\s*<(interpreter|tool_response)>\n?(.*?)\n?</\1>\s*\Z", re.DOTALL)
_INNER_FENCE = re.compile(r"\A\s*```(?:python3?|py)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
# Names under which Python is run: python, code_interpreter, execute_python_code, functions.run, PythonREPL, …
_PYTHON = re.compile(
    r"(?:i?py(?:thon)?|code|interpreter|exec(?:ut(?:e|or|ion))?|eval|run(?:ner)?|repl|ast|script|tool|sandbox|cell"
    r"|jupyter|notebook|stateful|functions?|[\W\d_])+",
    re.IGNORECASE,
)
# What only an environment writes. <output>, <result> and Search-R1's <information> are that behind a call alone.
_MARK = re.compile(
    rf"</?(?:{_OWN_TAGS})>|^[ \t>]*```(?:output|stdout|tool_outputs?)[ \t]*$|\[/?TOOL_RESULTS\]"
    r"|<｜tool▁outputs?▁(?:begin|end)｜>|</(?:code|python|llm-code|tool_call|search)>\s*<(?:output|result|information)>",
    _FLAGS,
)
# Syntaxes that are recognised in a text, in this order: what a fence holds may look like a call of another.
_TEXTUAL = ("fence", "code", "python", "hermes", "openai", "qwen_xml", "glm", "llama", "mistral", "deepseek", "harmony")


@dataclass(frozen=True, slots=True)
class Trace:
    """messages: role and content, the assistant's as it would write them, outputs as it would see them (the message of
    a tool names it); `weight` "0" at a turn that is not learnt. calls and outputs: of all turns, in order, as they were
    in the trace.
    """

    line: int
    messages: tuple[dict[str, str], ...]
    calls: tuple[ToolCall, ...]
    outputs: tuple[str, ...]


def trace_file(name: str) -> Path:
    """Of a path, or of traces that come with the package ("first-calls")."""
    packaged = name in PACKAGED and not Path(name).exists()
    return Path(__file__).parent / "problems" / f"{name}.jsonl" if packaged else Path(name)


def read_traces(
    name: str,
    syntax: Sequence[str],
    parallel: bool,
    ends: Sequence[str] = (),
    tools: Collection[str] | None = None,
) -> tuple[list[Trace], dict[str, list[int]], str]:
    """(traces, why -> numbers of the rows that are none, what the numbers count); syntax, parallel: of the environment.

    name: as data is named (a file, a folder, a Hugging Face id), or packaged traces. ends: tokens that end a turn, left
    out where messages end in them. tools: what calls may name; None: anything. Raises UserError without any rows.
    """
    try:
        rows, at = sources.rows(str(trace_file(name)), None, None)
        rows = iter(list(rows))
    except (UserError, OSError) as error:
        hint = f"give a file of chat messages, a Hugging Face id, or packaged ones: {', '.join(PACKAGED)}"
        raise UserError(f"cannot read the traces {name} ({error}); {hint}") from None
    traces, bad = [], dict[str, list[int]]()
    for number, row in rows:
        try:
            traces.append(trace_of(_checked(row), syntax, parallel, number, ends, tools))
        except BadTrace as error:
            bad.setdefault(str(error), []).append(number)
    return traces, bad, at


def told(bad: Mapping[str, Sequence[int]], at: str) -> str:
    """What is wrong with which rows, in one line; at: what the numbers count."""
    rows = [f"{at} {', '.join(map(str, lines[:10]))}: {why}" for why, lines in list(bad.items())[:SHOWN]]
    return "; ".join(rows) + (f"; and {len(bad) - SHOWN} other kinds" if len(bad) > SHOWN else "")


def _checked(row: Any) -> Mapping[str, Any]:
    if isinstance(row, ValueError):
        raise BadTrace(str(row))
    if not isinstance(row, Mapping):
        raise BadTrace("not an object")
    return row


def trace_of(
    row: Mapping[str, Any],
    syntax: Sequence[str],
    parallel: bool,
    number: int = 1,
    ends: Sequence[str] = (),
    tools: Collection[str] | None = None,
) -> Trace:
    """One row, as `read_traces` reads all of them. Raises BadTrace."""
    messages: list[dict[str, str]] = []
    for message in _in_order_of_calls(messages_of(row)):
        before = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
        messages += _spread(message, syntax, ends, before)
    _refuse_order(messages)
    calls: list[ToolCall] = []
    outputs: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            after = [m for m in _until_assistant(messages[index + 1 :]) if m["role"] == "tool"]
            said = [m["content"] for m in after]
            message["content"], found = _turn(message["content"], syntax, said, parallel)
            if "weight" not in message:
                _refuse_outputs(message["content"], found)
                _refuse_tools(found, said, tools)
            calls += found
            for call, output in zip(found, after, strict=True):
                outputs.append(output["content"])
                output.update(name=call.name, content=framed(syntax, output["content"]))
    spoken = [m for m in messages if m["role"] == "assistant" and m["content"].strip()]
    if not any("weight" not in m for m in spoken):
        raise BadTrace(
            "no turn of the assistant is learnt: all have weight 0" if spoken else "the assistant says nothing"
        )
    if any(re.search("[\ud800-\udfff]", m["content"]) for m in messages):
        raise BadTrace("half a character (a lone surrogate), which no tokenizer reads")
    return Trace(number, tuple(messages), tuple(calls), tuple(outputs))


def _refuse_order(messages: Sequence[dict[str, str]]) -> None:
    """Raises BadTrace where nobody is asked, nobody answers, or nothing was called."""
    if messages and messages[-1]["role"] != "assistant":
        raise BadTrace(f"it ends with a {messages[-1]['role']} message, not with the assistant's")
    if not messages or messages[0]["role"] == "assistant":
        raise BadTrace("no prompt before the assistant speaks" if messages else "no message")
    if any(m["role"] == "tool" for m in _until_assistant(messages)):
        raise BadTrace("an output before anything was called")


def _in_order_of_calls(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Outputs that name their calls stand in the order of these: they may have been written as they came in."""
    ordered: list[Mapping[str, Any]] = []
    places: dict[Any, int] = {}
    for message in messages:
        if message["role"] == "assistant":
            ids = [call.get("id") for call in message["tool_calls"] if isinstance(call, Mapping)]
            places = {str(name): place for place, name in enumerate(ids) if name is not None}
        place = places.get(message.get("answers")) if message["role"] == "tool" else None
        at = len(ordered)
        while place is not None and at and places.get(ordered[at - 1].get("answers"), -1) > place:
            at -= 1
        ordered.insert(at, message)
    return ordered


def _spread(
    message: Mapping[str, Any], syntax: Sequence[str], ends: Sequence[str], before: Mapping[str, str] | None
) -> list[dict[str, str]]:
    """The message, split where outputs stand in its text, its calls written into it.

    ends: see `read_traces`. before: the turn that it answers.
    """
    role, text = message["role"], message["content"]
    if role == "tool":
        inner = _FRAMED.match(text)
        return [{"role": role, "content": inner[2] if inner else text}]
    text = _without(text, ends)
    if role == "user" and before and (seen := _answers(text)) and _calls(before["content"], syntax):
        return [{"role": "tool", "content": one} for one in seen]
    if role != "assistant":
        return [{"role": role, "content": text}]
    unlearnt = {} if message["trained"] else {"weight": "0"}
    split, rest = _split(text, syntax)
    parts = [{"role": r, "content": one, **(unlearnt if r == "assistant" else {})} for r, one in split]
    written = [_written(*_named(call), syntax) for call in message["tool_calls"]]
    if written and rest.strip():
        written.insert(0, rest)
    if written or rest.strip() or not parts:
        parts.append({"role": "assistant", "content": "\n".join(written) if written else rest, **unlearnt})
    return parts


def _split(text: str, syntax: Sequence[str]) -> tuple[list[tuple[str, str]], str]:
    """Role and content of turns and outputs in a text, as far as there are outputs, and what is left behind these."""
    parts: list[tuple[str, str]] = []
    end = 0
    while match := _INLINE.search(text, end):
        if match["named"]:
            said = text[end : match.end("named")].lstrip("\n")
        else:
            code = match["tag"] if match["tag"] is not None else match["fence"]
            inner = _INNER_FENCE.match(code)
            code = (inner[1] if inner else code).strip("\n")
            said = text[end : match.start()].lstrip("\n") + _written("python", {"code": code}, syntax)
        parts += [("assistant", said), ("tool", _seen(match))]
        end = match.end()
        while match["named"] and (another := _ANSWERS.match(text, end)):
            parts.append(("tool", _seen(another)))
            end = another.end()
    return parts, text[end:].lstrip("\n") if parts else text


def _without(text: str, ends: Sequence[str]) -> str:
    """The text without the tokens that end a turn, where it ends in them: whoever renders it writes them."""
    either = "|".join(map(re.escape, ends))
    return re.sub(rf"(?:(?:{either})\s*)+\Z", "", text) if ends else text


def _answers(text: str) -> list[str]:
    """The outputs that a message of the user is; none where it is a question."""
    found = [_seen(one) for one in _ANSWERS.finditer(text)]
    if found and not _ANSWERS.sub("", text).strip():
        return found
    answer = _ANSWER.match(text)
    return [_seen(answer)] if answer else []


def _calls(text: str, syntax: Sequence[str]) -> bool:
    """Whether a turn calls something, in whatever syntax."""
    return any(call.status == "ok" for one in (tuple(syntax), *_TEXTUAL) for call in _closed(text, one))


def _seen(match: re.Match[str]) -> str:
    """The output in a match of `_SEEN` or a part of it."""
    groups = match.groupdict()
    return next(groups[name] for name in ("seen", "out", "plain", "rest") if groups.get(name) is not None).strip("\n")


def _named(call: Any) -> tuple[str, Mapping[str, Any]]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadTrace("a tool call without a name")
    arguments = decoded(function.get("arguments", {}) or {}, "what a tool call is given")
    if not isinstance(arguments, Mapping):
        raise BadTrace("a tool call whose arguments are no object")
    return function["name"], arguments


def _written(name: str, arguments: Mapping[str, Any], syntax: Sequence[str]) -> str:
    writer = next((one for one in map(syntax_of, syntax) if hasattr(one, "write")), None)
    if writer is None:
        raise BadTrace(
            f"a call that would have to be written in {syntax[0]}, which has no `write`: write it so yourself"
        )
    arguments = {key: with_newlines(one) if isinstance(one, str) else one for key, one in arguments.items()}
    if not writer.tools:
        names = [key for key in ("code", "source", "input", "script") if isinstance(arguments.get(key), str)]
        if not names or not _PYTHON.fullmatch(name):
            how = "name it in env.options.tools, and set syntax = 'hermes' beside it"
            raise BadTrace(f"a call of {name} that is no Python: {how}" + (", or write python for it" if names else ""))
        if others := sorted(arguments.keys() - {names[0]}):
            told = ", ".join(others)
            raise BadTrace(
                f"a call of {name} with {told} beside its code, which alone {syntax[0]!r} writes: drop {told}"
            )
        name, arguments = "python", {"code": arguments[names[0]].strip("\n")}
    return writer.write(name, arguments)


def _until_assistant(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    end = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return list(messages[:end])


def _turn(text: str, syntax: Sequence[str], outputs: Sequence[str], parallel: bool) -> tuple[str, list[ToolCall]]:
    """The turn in the environment's syntax, and its calls, of which there are as many as outputs follow."""
    calls = list(parse(text, tuple(syntax)).calls)
    unread = any(output.startswith(UNREADABLE) for output in outputs)
    if unread and len(calls) == len(outputs) and (parallel or len(calls) == 1):
        return text, calls  # a failed try, and what the environment said to it: both stand as they were
    calls = [call for call in calls if call.status != "unclosed"]
    if outputs and not any(call.status == "ok" for call in calls):
        text = _rewritten(text, syntax)
        calls = _closed(text, syntax)
    if not outputs:  # a failed try that nobody answered is prose
        calls = [call for call in calls if call.status == "ok"]
    if len(calls) != len(outputs):
        raise BadTrace(_uneven(len(calls), len(outputs)))
    if len(calls) > 1 and not parallel:
        raise BadTrace("several calls in one turn: set parallel_calls = true in env.options")
    if calls:
        end = calls[-1].span[1]
        if text[end:].strip():
            raise BadTrace("text between a call and its output")
        text = text[:end]
        if not text.endswith("\n") and syntax[0] == "fence":
            text += "\n"
    return text, calls


def output_in(text: str, calls: Sequence[ToolCall]) -> str:
    """What begins an output in a turn of the policy, beside its calls, for code may print anything; "" for none."""
    for start, end in sorted({call.span for call in calls}, reverse=True):
        text = f"{text[:start]}\n{text[end:]}"
    found = _MARK.search(text)
    return " ".join(found.group().split()) if found else ""


def _refuse_outputs(text: str, calls: Sequence[ToolCall]) -> None:
    """Raises BadTrace where an output is left in a turn."""
    if mark := output_in(text, calls):
        raise BadTrace(
            f"{mark} within what the assistant says, which would learn to write outputs: "
            "put each into a `tool` message behind its call, or take it out"
        )


def _refuse_tools(calls: Sequence[ToolCall], outputs: Sequence[str], tools: Collection[str] | None) -> None:
    """Raises BadTrace for a call of what is no tool; not where its output says so: that is how one is unlearnt."""
    for call, output in zip(calls, outputs, strict=True):
        if tools is None or call.status != "ok" or call.name in tools or output.startswith(NO_SUCH_TOOL):
            continue
        is_python = "python" in tools and _PYTHON.fullmatch(call.name)
        remedy = "write python for it" if is_python else "name it in env.options.tools"
        has = ", ".join(tools) or "none"
        raise BadTrace(f"a call of {call.name!r}, which the environment has not (its tools: {has}): {remedy}")


def _rewritten(text: str, syntax: Sequence[str]) -> str:
    """The turn with its calls in this syntax, where all are in another one; else as it is."""
    for other in _TEXTUAL:
        if (found := _closed(text, other)) and all(call.status == "ok" for call in found):
            prose = text[: found[0].span[0]]
            calls = [_written(call.name, call.arguments, syntax) for call in found]
            return "\n".join([*([prose] if prose.strip() else []), *calls])
    return text


def _uneven(calls: int, outputs: int) -> str:
    """Why a turn of so many calls, which so many outputs follow, is none, and how it would be one."""
    counts = f"{calls} call{'s' * (calls != 1)} and {outputs} output{'s' * (outputs != 1)} in one turn"
    if calls > outputs:
        return (
            f"{counts}: behind a call stands what it gave, as a `tool` message, an ```output block or "
            "<interpreter>…</interpreter>; code that is only shown is no call without the word python at its fence"
        )
    return f"{counts}: a call is written as tool_calls, a ```python block or <code>…</code>"


def _closed(text: str, syntax: str | Sequence[str]) -> list[ToolCall]:
    return [call for call in parse(text, syntax).calls if call.status != "unclosed"]
