"""Hermes, Qwen 2.5 and Qwen 3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

JSON as models write it: raw line breaks and tabs in strings, Python literals, several objects in one tag. A closer
within a string is text; where no other comes, it was the closer of JSON that is broken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, prefixes
from solostream.envs.text.syntax.json_body import calls, outside_strings, written

_CLOSER = "</tool_call>"


class Hermes:
    """Calls as `<tool_call>{"name": …}</tool_call>`."""

    name = "hermes"
    how = 'To call a tool, write <tool_call>{"name": …, "arguments": {…}}</tool_call>.'
    opener = "<tool_call>"
    partial = prefixes("<tool_call>")
    stops = (_CLOSER,)
    tools = True
    marks = ("<tool_call>",)

    def enter(self, match: re.Match[str]) -> Block:
        """Always a call: `<tool_call>` opens nothing else."""
        return Block("call", match.start(), match.end(), match.end())

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """`</tool_call>` outside JSON strings; where the turn ends without one, the first inside."""
        found = outside_strings(text, block, _CLOSER)
        if found is None and final and (at := text.find(_CLOSER, block.body)) >= 0:
            return at, at + len(_CLOSER)
        return found

    def calls(self, body: str, block: Block) -> list[Call]:
        """The JSON objects of the body, one a call."""
        return calls(body)

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        record = written({"name": name, "arguments": dict(arguments)})
        harmless = record.replace(_CLOSER, "<\\/tool_call>")  # the same JSON, without the end of the call in it
        return f"<tool_call>\n{harmless}\n{_CLOSER}"
