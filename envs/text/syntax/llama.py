"""Llama 3.1 to 3.3: code or JSON behind `<|python_tag|>`, or JSON alone on a line.

`<|python_tag|>print(1)<|eom_id|>`, `<|python_tag|>search.call(query="…")<|eom_id|>` and
`{"name": "search", "parameters": {"query": "…"}}`. The end of the turn closes a call: engines keep its token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, prefixes
from solostream.envs.text.syntax.fence import code_call
from solostream.envs.text.syntax.json_body import balanced, calls, looks_like_call, values, written
from solostream.envs.text.syntax.openai import OPENER, PARTIAL, json_block, line_calls
from solostream.envs.text.syntax.pythonic import expression_calls

_END = re.compile(r"<\|e(?:om|ot)_id\|>")
_BUILT_IN = re.compile(r"\s*(\w+)\.call(?=\()")


class Llama:
    """Calls as `<|python_tag|>print(1)<|eom_id|>`."""

    name = "llama"
    how = 'To run Python, write <|python_tag|> and the code; to call a tool, {"name": …, "parameters": {…}}.'
    opener = rf"<\|python_tag\|>|{OPENER % 'llama'}"
    partial = f"{prefixes('<|python_tag|>')}|{PARTIAL}"
    stops = ("<|eom_id|>", "<|eot_id|>", '"}}')
    tools = True
    marks = ("<|python_tag|>",)

    def enter(self, match: re.Match[str]) -> Block:
        """A call, by the tag of the built-in tools or as a bare JSON object."""
        if match["llama_json"]:
            return json_block(match.start("llama_json"))
        return Block("call", match.start(), match.end(), match.end(), {"tag": True})

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The tag's end token, or the end of the balanced JSON."""
        if "tag" not in block.notes:
            at = balanced(text, block)
            return None if at is None else (at, at)
        if found := _END.search(text, block.resume):
            return found.span()
        block.resume = max(block.resume, len(text) - 9)
        return (len(text), len(text)) if final else None

    def calls(self, body: str, block: Block) -> list[Call]:
        """Behind the tag code, JSON calls or `tool.call(…)`; else the JSON object of the line."""
        if "tag" not in block.notes:
            return line_calls(body)
        if body.lstrip().startswith(("{", "[")):
            try:
                records = values(body)
            except ValueError:
                records = []
            if any(looks_like_call(r) for value in records for r in (value if isinstance(value, list) else [value])):
                return calls(body)
        if built_in := _BUILT_IN.match(body):
            named = expression_calls(f"[{built_in[1]}{body[built_in.end() :].strip()}]")
            if named and not named[0].error:
                return named
        return code_call(body)

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        if name == "python" and set(arguments) == {"code"}:
            return f"<|python_tag|>{arguments['code']}<|eom_id|>"
        return written({"name": name, "parameters": dict(arguments)})
