"""Conversations that somebody else wrote, with the calls as the policy of an environment writes them.

They are the traces of a cold start and the examples of a few-shot prompt.

Layouts, a row each (JSON lines, Parquet, a data set of the Hugging Face Hub): OpenAI `messages` (content as text or
parts, `tool_calls` or `function_call`, `tool` messages), ShareGPT `conversations` (`from`/`value`, `system` beside
them), `prompt` and `completion` or `response` (text or messages), `instruction`, `input` and `output`. An assistant's
text may hold calls with their outputs, as ReTool writes them (`<code>…</code><interpreter>…</interpreter>`) or fences
(```python, then ```output): it is split where the interpreter spoke. What cannot be a trace is told by its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solostream.envs.data import sources
from solostream.envs.text.parse import parse
from solostream.envs.text.syntax import framed
from solostream.envs.text.syntax import syntax as syntax_of
from solostream.envs.types import ToolCall
from solostream.errors import UserError

SHOWN = 5  # kinds of bad rows that a message lists
PACKAGED = ("first-calls",)  # traces that come with the package
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_ROLES |= {"developer": "system"} | dict.fromkeys(("observation", "function", "ipython", "tool_response"), "tool")
_SIDES = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
# A call and what came of it, within one text.
_INLINE = re.compile(
    r"<code>(?P<tag>.*?)</code>\s*<interpreter>(?P<seen>.*?)</interpreter>"
    r"|^```(?:python3?|py)[ \t]*\n(?P<fence>.*?)^```[ \t]*\n\s*```(?:output|text|console|stdout)[ \t]*\n"
    r"(?P<out>.*?)^```[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
_INNER_FENCE = re.compile(r"\A\s*```(?:python3?|py)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_TEXTUAL = ("fence", "code", "python", "hermes")  # syntaxes that are recognised in a text


@dataclass(frozen=True, slots=True)
class Trace:
    """messages: role and content, the assistant's as it would write them, outputs as it would see them (the message of
    a tool names it). calls and outputs: of all turns, in order, as they were in the trace.
    """

    line: int
    messages: tuple[dict[str, str], ...]
    calls: tuple[ToolCall, ...]
    outputs: tuple[str, ...]


class BadTrace(ValueError):
    """Why a line is no trace."""


def trace_file(name: str) -> Path:
    """Of a path, or of traces that come with the package ("first-calls")."""
    packaged = name in PACKAGED and not Path(name).exists()
    return Path(__file__).parent / "problems" / f"{name}.jsonl" if packaged else Path(name)


def read_traces(name: str, syntax: Sequence[str], parallel: bool) -> tuple[list[Trace], dict[str, list[int]], str]:
    """(traces, why -> numbers of the rows that are none, what the numbers count); syntax, parallel: of the environment.

    name: as data is named (a file, a folder, a Hugging Face id), or packaged traces. Raises UserError without any.
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
            traces.append(trace_of(_checked(row), syntax, parallel, number))
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


def trace_of(row: Mapping[str, Any], syntax: Sequence[str], parallel: bool, number: int = 1) -> Trace:
    """Raises BadTrace."""
    messages: list[dict[str, str]] = []
    for message in _in_order_of_calls(_messages(row)):
        messages += _spread(message, syntax)
    while messages and messages[-1]["role"] != "assistant":
        raise BadTrace(f"it ends with a {messages[-1]['role']} message, not with the assistant's")
    if not messages or messages[0]["role"] == "assistant":
        raise BadTrace("no prompt before the assistant speaks" if messages else "no message")
    if any(m["role"] == "tool" for m in _until_assistant(messages)):
        raise BadTrace("an output before anything was called")
    calls: list[ToolCall] = []
    outputs: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            after = [m for m in _until_assistant(messages[index + 1 :]) if m["role"] == "tool"]
            message["content"], found = _turn(message["content"], syntax, len(after), parallel)
            calls += found
            for call, output in zip(found, after, strict=True):
                outputs.append(output["content"])
                output.update(name=call.name, content=framed(syntax, output["content"]))
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise BadTrace("the assistant says nothing")
    if any(re.search("[\ud800-\udfff]", m["content"]) for m in messages):
        raise BadTrace("half a character (a lone surrogate), which no tokenizer reads")
    return Trace(number, tuple(messages), tuple(calls), tuple(outputs))


def _messages(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    said = row.get("system")
    opening = [{"role": "system", "content": said}] if isinstance(said, str) and said.strip() else []
    for name in ("messages", "conversations", "conversation"):
        listed = row.get(name)
        if isinstance(listed, str) and listed.lstrip().startswith("["):
            listed = _decoded(listed, name)
        if isinstance(listed, list):
            return [_message(one) for one in (*opening, *listed)]
    for asked, told in _SIDES:
        if row.get(asked) is not None and row.get(told) is not None:
            more = f"\n\n{row['input']}" if asked == "instruction" and row.get("input") else ""
            sides: list[Any] = []
            for role, side in (("user", row[asked]), ("assistant", row[told])):
                text = side + more if role == "user" and isinstance(side, str) else side
                if not isinstance(side, str | list):
                    raise BadTrace(f"its {asked if role == 'user' else told} is neither text nor messages")
                sides += [{"role": role, "content": text}] if isinstance(side, str) else side
            return [_message(one) for one in (*opening, *sides)]
    have = ", ".join(map(str, row)) or "nothing"
    raise BadTrace(f"no messages, no conversations, no prompt and completion (it has: {have})")


def _message(one: Any) -> Mapping[str, Any]:
    """Role, content and calls of a message in either spelling."""
    if not isinstance(one, Mapping):
        raise BadTrace("a message that is no object")
    role = one.get("role", one.get("from"))
    content = one.get("content", one.get("value"))
    calls = one.get("tool_calls") or ([one["function_call"]] if one.get("function_call") else [])
    if not isinstance(calls, list):
        raise BadTrace("tool_calls that are no list")
    if role == "function_call":  # ShareGPT's own: the call is the message
        return {"role": "assistant", "content": "", "tool_calls": [_decoded(content, "the function_call")]}
    role = _ROLES.get(str(role), role)
    if role not in ("system", "user", "assistant", "tool"):
        raise BadTrace(f"a message of the role {role!r}")
    if isinstance(content, list):
        content = "".join(map(_text_of, content))
    if content is None and (calls or role == "tool"):
        content = ""
    if not isinstance(content, str):
        raise BadTrace(f"a {role} message without text")
    thought = one.get("reasoning_content") or one.get("reasoning")
    if role == "assistant" and isinstance(thought, str) and thought.strip():
        content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
    answers = one.get("tool_call_id")
    return {"role": role, "content": content, "tool_calls": calls, "answers": None if answers is None else str(answers)}


def _text_of(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):  # a picture: what is said of it would be learnt without it
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise BadTrace(f"a part of a message that is no text ({kind})")
    return text


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


def _decoded(text: Any, what: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        raise BadTrace(f"{what} is not JSON") from None


def _spread(message: Mapping[str, Any], syntax: Sequence[str]) -> list[dict[str, str]]:
    """The message, split where outputs stand in its text, its calls written into it."""
    text = message["content"]
    if message["role"] != "assistant":
        return [{"role": message["role"], "content": text}]
    parts: list[dict[str, str]] = []
    end = 0
    for match in _INLINE.finditer(text):
        code = match["tag"] if match["tag"] is not None else match["fence"]
        inner = _INNER_FENCE.match(code)
        code = (inner[1] if inner else code).strip("\n")
        said = text[end : match.start()].lstrip("\n") + _written("python", {"code": code}, syntax)
        seen = match["seen"] if match["seen"] is not None else match["out"]
        parts += [{"role": "assistant", "content": said}, {"role": "tool", "content": seen.strip("\n")}]
        end = match.end()
    rest = text[end:].lstrip("\n") if parts else text
    written = [_written(*_named(call), syntax) for call in message["tool_calls"]]
    if written and rest.strip():
        written.insert(0, rest)
    if written or rest.strip() or not parts:
        parts.append({"role": "assistant", "content": "\n".join(written) if written else rest})
    return parts


def _named(call: Any) -> tuple[str, Mapping[str, Any]]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadTrace("a tool call without a name")
    arguments = _decoded(function.get("arguments", {}) or {}, "what a tool call is given")
    if not isinstance(arguments, Mapping):
        raise BadTrace("a tool call whose arguments are no object")
    return function["name"], arguments


def _written(name: str, arguments: Mapping[str, Any], syntax: Sequence[str]) -> str:
    writer = next((one for one in map(syntax_of, syntax) if hasattr(one, "write")), None)
    if writer is None:
        raise BadTrace(
            f"a call that would have to be written in {syntax[0]}, which has no `write`: write it so yourself"
        )
    if not writer.tools:
        names = [key for key in ("code", "source", "input", "script") if isinstance(arguments.get(key), str)]
        if not names or len(arguments) != 1:
            raise BadTrace(f"a call of {name} that is no code: set syntax = 'hermes' in env.options")
        name, arguments = "python", {"code": arguments[names[0]].strip("\n")}
    return writer.write(name, arguments)


def _until_assistant(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    end = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return list(messages[:end])


def _turn(text: str, syntax: Sequence[str], outputs: int, parallel: bool) -> tuple[str, list[ToolCall]]:
    """The turn in the environment's syntax, and its calls, of which there are as many as outputs follow."""
    calls = _closed(text, syntax)
    if outputs and not any(call.status == "ok" for call in calls):
        for other in _TEXTUAL:
            if (found := _closed(text, (other,))) and all(call.status == "ok" for call in found):
                calls_text = [_written(call.name, call.arguments, syntax) for call in found]
                text = "\n".join([*([prose] if (prose := text[: found[0].span[0]]).strip() else []), *calls_text])
                calls = _closed(text, syntax)
                break
    if not outputs:  # a failed try that nobody answered is prose
        calls = [call for call in calls if call.status == "ok"]
    if len(calls) != outputs:
        raise BadTrace(f"{len(calls)} calls and {outputs} outputs in one turn")
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


def _closed(text: str, syntax: Sequence[str]) -> list[ToolCall]:
    return [call for call in parse(text, tuple(syntax)).calls if call.status != "unclosed"]
