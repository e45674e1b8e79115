r"""DeepSeek: calls between special tokens, in the three shapes of its releases.

V3 and R1:  <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n{…}\n```<｜tool▁call▁end｜>…
V3.1:       <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
V3.2:       <｜DSML｜function_calls><｜DSML｜invoke name="…"><｜DSML｜parameter name="…" string="true">…
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, prefixes
from solostream.envs.text.syntax.json_body import arguments, values, written

_BEGIN, _END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_DSML, _DSML_END = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"
_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)(?:<｜tool▁call▁end｜>|(?=<｜tool▁call▁begin｜>)|\Z)", re.DOTALL)
_SHAPE = re.compile(
    r"\s*(?:function\s*<｜tool▁sep｜>\s*([\w.-]+)\s*(?:```(?:json)?)?|([\w.-]+)\s*<｜tool▁sep｜>)(.*)", re.DOTALL
)
_INVOKE = re.compile(
    r'<｜DSML｜invoke name="([^"\n]{1,200})">(.*?)(?:</｜DSML｜invoke>|(?=<｜DSML｜invoke )|\Z)', re.DOTALL
)
_PARAMETER = re.compile(
    r'<｜DSML｜parameter name="([^"\n]{1,200})"(?: string="(true|false)")?>(.*?)'
    r"(?:</｜DSML｜parameter>|(?=<｜DSML｜parameter )|\Z)",
    re.DOTALL,
)


class DeepSeek:
    """Calls as `<｜tool▁calls▁begin｜>…<｜tool▁calls▁end｜>`."""

    name = "deepseek"
    how = (
        "To call a tool, write <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>."
    )
    opener = f"{_BEGIN}|{_DSML}"
    partial = f"{prefixes(_BEGIN)}|{prefixes(_DSML)}"
    stops = (_END, _DSML_END)
    tools = True
    marks = ("<｜tool▁call",)

    def enter(self, match: re.Match[str]) -> Block:
        """Always a call; which of the two forms opened it says what closes it."""
        closer = _END if match.group() == _BEGIN else _DSML_END
        return Block("call", match.start(), match.end(), match.end(), {"closer": closer})

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The form's closing token; the end of the turn where a whole call stands right before it."""
        closer = block.notes["closer"]
        at = text.find(closer, block.resume)
        if at >= 0:
            return at, at + len(closer)
        block.resume = max(block.resume, len(text) - len(closer) + 1)
        whole = "<｜tool▁call▁end｜>" if closer == _END else "</｜DSML｜invoke>"
        # The end of the turn closes what holds a whole call: engines keep special tokens to themselves.
        return (len(text), len(text)) if final and text.rstrip().endswith(whole) else None

    def calls(self, body: str, block: Block) -> list[Call]:
        """All calls between the tokens: V3's name and JSON, or the `invoke` elements of V3.2's DSML."""
        if block.notes["closer"] == _DSML_END:
            invoked = [_invoked(match) for match in _INVOKE.finditer(body)]
            return invoked or [Call("", {"raw": body}, "no whole <｜DSML｜invoke>")]
        found = [_named(match[1], body) for match in _CALL.finditer(body)]
        return found or [Call("", {"raw": body}, "no <｜tool▁call▁begin｜>")]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        return f"{_BEGIN}<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{written(arguments)}<｜tool▁call▁end｜>{_END}"


def _named(text: str, body: str) -> Call:
    shape = _SHAPE.match(text)
    if shape is None:
        return Call("", {"raw": body}, "no tool's name and <｜tool▁sep｜>")
    try:
        found = values(shape[3].strip().removesuffix("```"))
    except ValueError as error:
        return Call("", {"raw": body}, str(error))
    return arguments(shape[1] or shape[2], found[0], body)


def _invoked(match: re.Match[str]) -> Call:
    given = {}
    for name, string, value in _PARAMETER.findall(match[2]):
        given[name] = value
        if string == "false":
            try:
                given[name] = values(value)[0]
            except ValueError:
                given[name] = value
    return Call(match[1], given)
