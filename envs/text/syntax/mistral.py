"""Mistral: `[TOOL_CALLS] [{"name": …, "arguments": {…}}]`; since 2025 one tag a call, `[TOOL_CALLS]name[ARGS]{…}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, prefixes
from solostream.envs.text.syntax.json_body import arguments, balanced, calls, values, written

_TAG = "[TOOL_CALLS]"
_JSON = re.compile(r"\{|\[(?=\s{0,64}[{\]])")
_NAME = re.compile(r"\s*([\w.-]{1,200})\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*")


class Mistral:
    """Calls as `[TOOL_CALLS]python[ARGS]{"code": …}`."""

    name = "mistral"
    how = 'To call a tool, write [TOOL_CALLS][{"name": …, "arguments": {…}}].'
    opener = re.escape(_TAG)
    partial = prefixes(_TAG)
    stops = ('"}', "}]")
    tools = True
    marks = (_TAG,)

    def enter(self, match: re.Match[str]) -> Block:
        """Always a call: `[TOOL_CALLS]` opens nothing else."""
        return Block("call", match.start(), match.end(), match.end())

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The end of the JSON behind the token; several calls may stand in one list."""
        notes = block.notes
        if "json" not in notes:
            found = _JSON.search(text, block.resume)
            if found is None:
                waiting = re.compile(r"\[\s{0,64}\Z").search(text, block.resume)
                block.resume = waiting.start() if waiting else len(text)
                return None
            notes["json"] = Block("call", found.start(), found.start(), found.start())
        at = balanced(text, notes["json"])
        return None if at is None else (at, at)

    def calls(self, body: str, block: Block) -> list[Call]:
        """A list of calls, or NAME[ARGS]{…} with the arguments of one."""
        named = _NAME.match(body)
        if named is None:
            return calls(body)
        try:
            found = values(body[named.end() :])
        except ValueError as error:
            return [Call("", {"raw": body}, str(error))]
        return [arguments(named[1], found[0], body)]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        return f"{_TAG} [{written({'name': name, 'arguments': dict(arguments)})}]"
