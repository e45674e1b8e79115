"""Find the calls that a policy wrote: one scanner, fed the whole turn or token by token, with the same result.

Syntaxes: `fence` (a Markdown block marked python), `code` and `python` (`<code>…</code>`, `<python>…</python>`, a fence
just inside is peeled off), `hermes` (`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, Qwen's form too) and
`openai` (a JSON object or list with `tool_calls` or `name` + `arguments`/`parameters`, starting a line).

Rules. A block ends at its first closer, as an engine's stop string does. A fence closes on a line of its own
(CommonMark: an opener inside a block is content). Code that is empty or repeats its own opening tag is `malformed`, as
is JSON that does not name a tool and its arguments; a block without a closer is `unclosed` and reaches to the end.
`think` says what calls inside `<think>` mean: `run` them, `skip` them, or `prefilled`: skip, and the turn begins inside
because the chat template wrote the opening tag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from textwrap import dedent
from typing import Any, Literal, get_args

from solostream.envs.types import ToolCall
from solostream.errors import UserError

Syntax = Literal["fence", "code", "python", "hermes", "openai"]
Think = Literal["run", "skip", "prefilled"]
Span = tuple[int, int]

STOPS: Mapping[str, tuple[str, ...]] = {
    "fence": ("\n```\n",),
    "code": ("</code>",),
    "python": ("</python>",),
    "hermes": ("</tool_call>",),
    "openai": (),
}
_OPENERS: Mapping[str, str] = {
    # Neither "<" nor "`" in the info string: an unfinished line can then never hide an opener that comes later in it.
    "fence": r"^ {0,3}(?P<ticks>`{3,40})(?P<info>[^`<\n]{0,100})\n",
    "code": r"<code>",
    "python": r"<python>",
    "hermes": r"<tool_call>",
    "openai": r'^[ \t]{0,32}(?P<json>(?:\[\s{0,32})?\{\s{0,32}"(?:'  # the keys of a call or its message, in any order
    r'arguments|content|function|id|index|name|parameters|role|tool_calls|type)")',
}
# What may still become an opener when more text arrives. (Everything is bounded: no line makes the scan quadratic.)
_PARTIAL = re.compile(
    r'(?:<[/a-z_]{0,10}|^ {0,3}(?:`{1,40}[^`<\n]{0,100})?|^[ \t]{0,32}(?:\[\s{0,32})?(?:\{\s{0,32}(?:"\w{0,10})?)?)\Z',
    re.MULTILINE,
)
_INNER_FENCE = re.compile(r"```(?:python3?|py)?[ \t\r]*\n")
_JSON_MARK = re.compile(r'\\.|["{}\[\]]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parsed:
    """`calls` in order; `thinking`: spans between `<think>` and `</think>` (an open one reaches to the end)."""

    calls: tuple[ToolCall, ...]
    thinking: tuple[Span, ...]


@dataclass(slots=True)
class _Block:
    kind: str  # fence, text (a fence in another language), code, python, hermes, openai, think
    start: int
    body: int
    resume: int  # nothing before this can hold the closer
    ticks: int = 0
    depth: int = 0
    quoted: bool = False


def syntaxes(names: str | Sequence[str]) -> tuple[str, ...]:
    """One or several syntax names, checked. Raises UserError."""
    chosen = (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        if name not in _OPENERS:
            raise UserError(f"unknown call syntax {name!r}; one of: {', '.join(_OPENERS)}")
    if not chosen:
        raise UserError(f"no call syntax given; name at least one of: {', '.join(_OPENERS)}")
    return chosen


@lru_cache
def _opener(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join([*(_OPENERS[n] for n in names), r"<(?P<think>/?think)>"]), re.MULTILINE)


@lru_cache
def _fence_end(ticks: int, final: bool) -> re.Pattern[str]:
    newline = r"(?:\n|\Z)" if final else r"\n"
    return re.compile(rf"^ {{0,3}}`{{{ticks},60}}[ \t\r]{{0,100}}{newline}", re.MULTILINE)


def parse(text: str, syntax: str | Sequence[str] = "fence", *, think: Think = "run") -> Parsed:
    """All calls of one whole turn. Never raises on any text; raises UserError on an unknown syntax."""
    parser = Parser(syntax, think=think)
    parser.feed(text)
    return parser.finish()


class Parser:
    """The incremental form: `feed` pieces as they are sampled, stop the turn at the position it returns."""

    def __init__(self, syntax: str | Sequence[str] = "fence", *, think: Think = "run") -> None:
        if think not in get_args(Think):
            raise UserError(f"unknown think policy {think!r}; one of: {', '.join(get_args(Think))}")
        self.stop: int | None = None  # end of the first closed call, in characters of all that was fed
        self._opener = _opener(syntaxes(syntax))
        self._skips = think != "run"
        self._text = ""
        self._resume = 0  # no opener that is still unseen begins before this
        self._block = _Block("think", 0, 0, 0) if think == "prefilled" else None
        self._calls: list[ToolCall] = []
        self._thinking: list[Span] = []
        self._think_start: int | None = None

    def feed(self, piece: str) -> int | None:
        """Returns where the turn must stop, once a closed call has been seen: one past its last character."""
        text, self._text = self._text, ""
        text += piece  # in place: a lone reference in a local, so a long turn costs no copy a token
        self._text = text
        self._scan(final=False)
        return self.stop

    def finish(self) -> Parsed:
        """The turn is over: what is open now stays unclosed."""
        self._scan(final=True)
        end = len(self._text)
        if (block := self._block) is not None:
            if block.kind == "think":
                self._thinking.append((block.start, end))
            elif block.kind != "text":
                self._calls += _calls(block.kind, self._text[block.body :], (block.start, end), closed=False)
            self._block = None
        elif self._think_start is not None:
            self._thinking.append((self._think_start, end))
        self._think_start, self._resume = None, end
        return Parsed(tuple(self._calls), tuple(self._thinking))

    def _scan(self, final: bool) -> None:
        while self._close(final) if self._block else self._open():
            pass

    def _open(self) -> bool:
        """Enter the next block; False when there is none yet."""
        match = self._opener.search(self._text, self._resume)
        if match is None:
            partial = _PARTIAL.search(self._text, self._resume)
            self._resume = partial.start() if partial else len(self._text)
            return False
        groups, start, end = match.groupdict(), match.start(), match.end()
        if groups["think"]:
            self._mark_think(groups["think"] == "think", start, end)
        elif groups.get("ticks"):
            language = (groups["info"].split() or [""])[0].lower()
            kind = "fence" if language in ("python", "py", "python3") else "text"
            self._block = _Block(kind, start, end, end, ticks=len(groups["ticks"]))
        elif groups.get("json"):
            body = match.start("json")
            self._block = _Block("openai", body, body, body)
        else:
            kind = {"<code>": "code", "<python>": "python", "<tool_call>": "hermes"}[match.group()]
            self._block = _Block(kind, start, end, end)
        self._resume = end
        return True

    def _mark_think(self, opens: bool, start: int, end: int) -> None:
        if opens and self._skips:
            self._block = _Block("think", start, end, end)
        elif opens:
            self._think_start = start if self._think_start is None else self._think_start
        elif self._think_start is not None or not self._thinking:  # a closer alone: the turn began inside
            self._thinking.append((self._think_start or 0, end))
            self._think_start = None

    def _close(self, final: bool) -> bool:
        """Leave the open block; False when its closer has not come yet."""
        block = self._block
        assert block is not None
        found = self._closer(block, final)
        if found is None:
            return False
        body_end, end = found
        if block.kind == "think":
            self._thinking.append((block.start, end))
        elif block.kind != "text":
            calls = _calls(block.kind, self._text[block.body : body_end], (block.start, end), closed=True)
            self._calls += calls
            if calls and self.stop is None:
                self.stop = end
        self._block, self._resume = None, end
        return True

    def _closer(self, block: _Block, final: bool) -> Span | None:
        """Where the body ends and where the block ends."""
        text = self._text
        if block.kind in ("fence", "text"):
            if match := _fence_end(block.ticks, final).search(text, block.resume):
                return match.start(), match.end()
            line = max(block.resume, text.rfind("\n", block.resume) + 1)
            block.resume = line if len(text) - line < 200 else len(text)  # too long a line to be the closer
            return None
        if block.kind == "openai":
            return self._json_end(block)
        closer = "</tool_call>" if block.kind == "hermes" else f"</{block.kind}>"
        at = text.find(closer, block.resume)
        if at >= 0:
            return at, at + len(closer)
        block.resume = max(block.resume, len(text) - len(closer) + 1)
        return None

    def _json_end(self, block: _Block) -> Span | None:
        for mark in _JSON_MARK.finditer(self._text, block.resume):
            block.resume = mark.end()
            symbol = mark.group()
            if symbol == '"':
                block.quoted = not block.quoted
            elif not block.quoted and symbol in "{[":
                block.depth += 1
            elif not block.quoted and symbol in "}]":
                block.depth -= 1
                if block.depth == 0:
                    return mark.end(), mark.end()
        return None


def _calls(kind: str, body: str, span: Span, *, closed: bool) -> list[ToolCall]:
    """The calls of one block: one, except for a JSON list of them; none for JSON that is no call."""
    if kind in ("hermes", "openai"):
        if closed:
            return _json_calls(kind, body, span)
        return [ToolCall("", {"raw": body}, span, "unclosed")]
    code = dedent(body if kind == "fence" else _peeled(body)).strip("\r\n")
    if not closed:
        return [ToolCall("python", {"code": code}, span, "unclosed")]
    if not code.strip():
        return [ToolCall("python", {"code": code, "error": "the code is empty"}, span, "malformed")]
    if f"<{kind}>" in code:
        return [ToolCall("python", {"code": code, "error": f"<{kind}> inside <{kind}>"}, span, "malformed")]
    return [ToolCall("python", {"code": code}, span)]


def _peeled(body: str) -> str:
    """The body without a fence just inside its tags (the form of ReTool's demonstrations)."""
    inner = body.strip()
    opener = _INNER_FENCE.match(inner)
    return inner[opener.end() : -3] if opener and inner.endswith("\n```") else body


def _json_calls(kind: str, body: str, span: Span) -> list[ToolCall]:
    def malformed(why: str) -> ToolCall:
        return ToolCall("", {"raw": body, "error": why}, span, "malformed")

    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as error:
        return [malformed(f"not JSON: {error}")]
    if isinstance(record, dict) and isinstance(record.get("tool_calls"), list):
        record = record["tool_calls"]
    records = record if isinstance(record, list) else [record]
    if kind == "openai" and not any(isinstance(r, dict) and _looks_like_call(r) for r in records):
        return []  # JSON that the policy wrote as text
    calls = []
    for item in records:
        found = _named(item)
        calls.append(malformed(found) if isinstance(found, str) else ToolCall(*found, span))
    return calls or [malformed("no call in it")]


def _looks_like_call(record: dict[str, Any]) -> bool:
    return "function" in record or ("name" in record and ("arguments" in record or "parameters" in record))


def _named(record: Any) -> tuple[str, dict[str, Any]] | str:
    """(name, arguments), or what is wrong."""
    if isinstance(record, dict) and isinstance(record.get("function"), dict):
        record = record["function"]
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        return 'no "name"'
    arguments = record.get("arguments", record.get("parameters", {}))
    if isinstance(arguments, str):  # OpenAI sends the arguments as a JSON string
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return f'"arguments" is not JSON: {error}'
    if not isinstance(arguments, dict):
        return '"arguments" is not an object'
    try:
        json.dumps([record["name"], arguments], ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return "a lone surrogate escape"
    return record["name"], arguments
