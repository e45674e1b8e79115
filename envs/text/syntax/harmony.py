"""gpt-oss (harmony): messages on channels. A message with a recipient is a call, other analysis is a thought.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.search <|constrain|>json
    <|message|>{"query": "…"}<|call|>
    <|channel|>analysis to=python code<|message|>print(1)<|call|>

The recipient may stand before the channel, behind the role. The built-in `python` takes code as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, prefixes
from solostream.envs.text.syntax.fence import code_call
from solostream.envs.text.syntax.json_body import arguments, values, written

_HEAD = r"[^<\n`\[~]{0,100}"
_END = re.compile(r"<\|(?:call|end|return|start)\|>")
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")


class Harmony:
    """Calls as `<|channel|>commentary to=functions.python<|message|>{…}<|call|>`."""

    name = "harmony"
    how = (
        "To call a tool, write <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>;"
        " the built-in Python takes code: <|channel|>analysis to=python code<|message|>…<|call|>."
    )
    opener = (
        rf"(?:<\|start\|>assistant(?P<harmony_role>{_HEAD}))?"
        rf"<\|channel\|>(?P<harmony_head>{_HEAD}(?:<\|constrain\|>{_HEAD})?)<\|message\|>"
    )
    partial = (
        rf"(?:<\|start\|>assistant{_HEAD})?<\|channel\|>{_HEAD}(?:<\|constrain\|>{_HEAD})?(?:{prefixes('<|message|>')})?"
        rf"|(?:<\|start\|>assistant{_HEAD})?<\|channel\|>{_HEAD}{prefixes('<|constrain|>')}"
        rf"|(?:<\|start\|>assistant{_HEAD})?{prefixes('<|channel|>')}"
        rf"|{prefixes('<|start|>assistant')}|<\|start\|>assistant{_HEAD}"
    )
    stops = ("<|call|>",)
    tools = True
    marks = ("<|channel|>", "<|message|>")

    def enter(self, match: re.Match[str]) -> Block:
        """A message of one channel: a call where it has a recipient, a thought in `analysis`, else text."""
        head = f"{match['harmony_role'] or ''} {match['harmony_head']}"
        recipient = _RECIPIENT.search(head)
        to = recipient[1] if recipient and recipient[1] not in ("all", "user", "assistant") else ""
        notes = {"to": to, "code": "json" not in head}
        where = match.start(), match.end(), match.end()
        if to:
            return Block("call", *where, notes)
        return Block("thought" if match["harmony_head"].split()[:1] == ["analysis"] else "text", *where)

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The end token of the message, or the start of the next; what is said aloud is no block at all."""
        if block.kind == "text":  # what is said aloud: the next message begins by itself
            return block.body, block.body
        found = _END.search(text, block.resume)
        if found:
            return found.start(), found.start() if found.group() == "<|start|>" else found.end()
        block.resume = max(block.resume, len(text) - 9)
        return (len(text), len(text)) if final and block.kind == "call" else None  # the engine keeps <|call|> to itself

    def calls(self, body: str, block: Block) -> list[Call]:
        """Raw code to `python`, JSON arguments to `functions.NAME`."""
        name = block.notes["to"].removeprefix("functions.")
        if name == "python" and block.notes["code"] and not body.lstrip().startswith("{"):
            return code_call(body)
        try:
            found = values(body)
        except ValueError as error:
            if name == "python" and not body.lstrip().startswith("{"):
                return code_call(body)
            return [Call("", {"raw": body}, str(error))]
        if name == "python" and not isinstance(found[0], dict):
            return code_call(body)
        return [arguments(name, found[0], body)]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        head = f"<|channel|>commentary to=functions.{name} <|constrain|>json"
        return f"{head}<|message|>{written(arguments)}<|call|>"
