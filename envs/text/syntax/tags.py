"""Code between tags: `<code>`, `<python>`, and ReTool's `<code>` that is answered by `<interpreter>`.

The first closer ends a block, as an engine's stop string does. A fence just inside is peeled off (the form of ReTool's
demonstrations, arXiv 2504.11536).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, find, prefixes
from solostream.envs.text.syntax.fence import code_call

_INNER = re.compile(r"(?:`{3}|~{3})(?:python3?|py)?[ \t\r]*\n")


class _Tag:
    tools = False
    marks = ()

    def __init__(self, name: str, tag: str) -> None:
        self.name, self._tag = name, tag
        self.how = f"To run Python, write it between <{tag}> and </{tag}>."
        self.opener, self.partial, self.stops = f"<{tag}>", prefixes(f"<{tag}>"), (f"</{tag}>",)

    def enter(self, match: re.Match[str]) -> Block:
        return Block("call", match.start(), match.end(), match.end())

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        return find(text, f"</{self._tag}>", block)

    def calls(self, body: str, block: Block) -> list[Call]:
        inner = body.strip()
        fence = _INNER.match(inner)
        peeled = fence is not None and inner[-4:] in ("\n```", "\n~~~")
        (call,) = code_call(inner[fence.end() : -3] if fence and peeled else body)
        nested = f"<{self._tag}> inside <{self._tag}>" if f"<{self._tag}>" in call.arguments["code"] else ""
        return [Call("python", call.arguments, call.error or nested)]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        return f"<{self._tag}>\n{arguments['code']}\n</{self._tag}>"


def code() -> _Tag:
    """Code as `<code> … </code>`."""
    return _Tag("code", "code")


class ReTool(_Tag):
    """Code as `<code> … </code>`, answered by `<interpreter> … </interpreter>`."""

    output = "<interpreter>\n{}\n</interpreter>"  # around what the policy sees of a call

    def __init__(self) -> None:
        super().__init__("retool", "code")
        self.how += " Its output comes between <interpreter> and </interpreter>."


def python() -> _Tag:
    """Code as `<python> … </python>`."""
    return _Tag("python", "python")
