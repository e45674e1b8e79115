"""OpenAI's messages as text: a JSON object or list with `tool_calls` or `name` + `arguments`, starting a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span
from solostream.envs.text.syntax.json_body import balanced, calls, looks_like_call, values, written

# The keys of a call or its message, in any order.
_KEYS = "arguments|content|function|id|index|name|parameters|role|tool_calls|type"
OPENER = rf'^[ \t]{{0,32}}(?P<%s_json>(?:\[\s{{0,32}})?\{{\s{{0,32}}["\'](?:{_KEYS})["\'])'
PARTIAL = r'^[ \t]{0,32}(?:\[\s{0,32})?(?:\{\s{0,32}(?:["\']\w{0,10})?)?'


class OpenAI:
    """Calls as `{"name": …, "arguments": {…}}` on a line of their own."""

    name = "openai"
    how = 'To call a tool, write on a line of its own {"name": …, "arguments": {…}}.'
    opener = OPENER % "openai"
    partial = PARTIAL
    stops = ()
    tools = True
    marks = ()

    def enter(self, match: re.Match[str]) -> Block:
        """A call that begins with the object's first brace."""
        return json_block(match.start("openai_json"))

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The end of the balanced JSON."""
        at = balanced(text, block)
        return None if at is None else (at, at)

    def calls(self, body: str, block: Block) -> list[Call]:
        """The call of the object; none where it is other JSON."""
        return line_calls(body)

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        return written({"name": name, "arguments": dict(arguments)})


def json_block(start: int) -> Block:
    """A call whose body begins at `start`, with the JSON's first brace."""
    return Block("call", start, start, start)


def line_calls(body: str) -> list[Call]:
    """The calls of JSON that starts a line; none where it is JSON that the policy wrote as text."""
    try:
        found = values(body)
    except ValueError:
        return calls(body)
    for value in found:
        record = value["tool_calls"] if isinstance(value, dict) and isinstance(value.get("tool_calls"), list) else value
        if not any(map(looks_like_call, record if isinstance(record, list) else [record])):
            return []
    return calls(body)
