"""Arguments between tags, as text: Qwen3-Coder and Qwen 3.5 (`<function=…><parameter=…>`), GLM (`<arg_key>`).

    <tool_call>                             <tool_call>python
    <function=python>                       <arg_key>code</arg_key>
    <parameter=code>                        <arg_value>print(1)</arg_value>
    print(1)                                </tool_call>
    </parameter>
    </function>
    </tool_call>

What stands in an argument's tags is text, the closers of the call too. Values have no types here: the tool's schema
says which they have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, prefixes
from solostream.envs.text.syntax.json_body import plain

_FUNCTION = re.compile(r"<function=([^>\n]{1,200})>")
_PARAMETER = re.compile(r"<parameter=([^>\n]{1,200})>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>([^<]{1,200})</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|\Z)", re.DOTALL)
_GLM_NAME = re.compile(r"\s*([\w.-]{1,200})\s*(?:<arg_key>|\Z)")


class QwenXML:
    """Calls as `<tool_call><function=python><parameter=code>…`."""

    name = "qwen_xml"
    how = (
        r"To call a tool, write <tool_call>\n<function=NAME>\n<parameter=ARGUMENT>\nVALUE\n</parameter>\n</function>\n"
        "</tool_call>."
    )
    opener = r"<tool_call>|<function=(?=[^<\[`\n>]{1,200}>)"
    partial = rf"{prefixes('<tool_call>')}|{prefixes('<function=')}|<function=[^<\[`\n>]{{0,200}}"
    stops = ("</tool_call>", "</function>")
    tools = True
    marks = ("<tool_call>", "<function=", "<parameter=")

    def enter(self, match: re.Match[str]) -> Block:
        """A call, by `<tool_call>` or by a bare `<function=…>`, as the models sometimes write."""
        bare = match.group() != "<tool_call>"
        body = match.start() if bare else match.end()
        notes = {"closer": "</function>" if bare else "</tool_call>"}
        return Block("call", match.start(), body, match.end(), notes)

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The closing tag outside parameters, whose values are raw text."""
        found = _outside(text, block, block.notes["closer"], "<parameter=", "</parameter>", final)
        if found and block.notes["closer"] == "</function>":
            return found[1], found[1]
        return found

    def calls(self, body: str, block: Block) -> list[Call]:
        """One call a `<function=NAME>` that does not stand inside a parameter."""
        functions, inside = [], False
        for mark in re.finditer(r"<(/?)parameter[=>]|<function=[^>\n]{1,200}>", body):
            if mark.group().startswith("<function="):
                functions += [] if inside else [mark.start()]
            else:
                inside = not mark[1]
        if not functions:
            return [Call("", {"raw": body}, "no <function=NAME>")]
        return [_function(body[a:b]) for a, b in zip(functions, [*functions[1:], len(body)], strict=True)]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        given = "".join(f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in arguments.items())
        return f"<tool_call>\n<function={name}>\n{given}</function>\n</tool_call>"


def _function(body: str) -> Call:
    match = _FUNCTION.match(body)
    assert match is not None
    block = Block("call", 0, match.end(), match.end())
    found = _outside(body, block, "</function>", "<parameter=", "</parameter>", final=True)
    inside = body[match.end() : found[0] if found else len(body)]
    values = {m[1].strip(): _unwrapped(m[2]) for m in _PARAMETER.finditer(inside)}
    rest = _PARAMETER.sub("", inside).strip()
    error = "" if found else "no </function>"
    if rest:
        error = f"text outside of <parameter=…>: {rest[:60]}"
    return Call(match[1].strip().strip("\"'"), values, error)


def _unwrapped(value: str) -> str:
    """Without the line breaks that the tags stand on."""
    return value.removeprefix("\r").removeprefix("\n").removesuffix("\n").removesuffix("\r")


class GLM:
    """Calls as `<tool_call>python<arg_key>code</arg_key><arg_value>…`."""

    name = "glm"
    how = (
        "To call a tool, write <tool_call>NAME\\n<arg_key>ARGUMENT</arg_key>\\n<arg_value>VALUE</arg_value>"
        "\\n</tool_call>."
    )
    opener = "<tool_call>"
    partial = prefixes("<tool_call>")
    stops = ("</tool_call>",)
    tools = True
    marks = ("<tool_call>", "<arg_key>")

    def enter(self, match: re.Match[str]) -> Block:
        """Always a call: `<tool_call>` opens nothing else."""
        return Block("call", match.start(), match.end(), match.end())

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The closing tag outside `<arg_value>`, whose content is raw text."""
        return _outside(text, block, "</tool_call>", "<arg_value>", "</arg_value>", final)

    def calls(self, body: str, block: Block) -> list[Call]:
        """The name, and the pairs of `<arg_key>` and `<arg_value>`; text between them is an error."""
        named = _GLM_NAME.match(body)
        if named is None:
            return [Call("", {"raw": body}, "no tool's name before <arg_key>")]
        values = {m[1].strip(): _unwrapped(m[2]) for m in _ARGUMENT.finditer(body)}
        rest = _ARGUMENT.sub("", body[named.end(1) :]).strip()
        return [Call(named[1], values, f"text outside of <arg_value>: {rest[:60]}" if rest else "")]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        pairs = (f"<arg_key>{k}</arg_key>\n<arg_value>{plain(v)}</arg_value>\n" for k, v in arguments.items())
        return f"<tool_call>{name}\n{''.join(pairs)}</tool_call>"


def _outside(text: str, block: Block, closer: str, opens: str, closes: str, final: bool) -> Span | None:
    """The first `closer` that is not between `opens` and `closes`; at the end of a turn the first one at all."""
    notes = block.notes
    longest = max(len(closer), len(opens), len(closes))
    for mark in re.compile(f"{closer}|{opens}|{closes}").finditer(text, block.resume):
        block.resume = mark.end()
        if mark.group() == closer:
            if not notes.get("inside"):
                return mark.span()
        else:
            notes["inside"] = mark.group() == opens
    block.resume = max(block.resume, len(text) - longest + 1)
    if final and (at := text.find(closer, block.body)) >= 0:
        return at, at + len(closer)
    return None
