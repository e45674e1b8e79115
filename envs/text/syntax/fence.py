"""Markdown fences marked python, as models write them: also in lists, behind text, with tildes.

As CommonMark has it, an opener inside a block is content and a closer stands on a line of its own. Beyond it: text may
stand before the opener, and a closer may stand at the end of the last line of code, unless it is in a string there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import dedent
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span

_PYTHON = re.compile(
    r"[ \t]*\{?[ \t]*\.?(?:i?python|py|tool_code|jupyter(?:-python)?|code_interpreter)[\d.]*"
    r"(?:[ \t\r:,;{}=][^`<\[\n]{0,60})?",
    re.IGNORECASE,
)
_LANGUAGE = re.compile(r"[\w.+#-]+[ \t\r]*")
_INFO = r"[^`<\[\n]{0,100}"
_PYTHON_LINE = re.compile(
    rf"(?<!`)`{{3,40}}(?={_PYTHON.pattern}\n)|(?<!~)~{{3,40}}(?={_PYTHON.pattern}\n)", re.IGNORECASE
)
# Of Python's strings only those of three quotes reach over lines; the others and comments can hold such quotes.
_STRINGS = re.compile(r"#[^\n]*|\"\"\"|'''|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?", re.DOTALL)
_REST = {quote: re.compile(rf"\\.|{quote}", re.DOTALL) for quote in ('"""', "'''")}


class Fence:
    """Code as ```python … ``` over several lines."""

    name = "fence"
    how = "To run Python, write a block that starts with a line ```python and ends with a line ```."
    # Neither "<", "[" nor "`" in the info string: an unfinished line can then hide no opener that comes later in it.
    opener = (
        r"(?P<fence_line>^[ \t>]{0,40})?(?P<fence_ticks>(?<!`)`{3,40}|(?<!~)~{3,40})"
        rf"(?P<fence_info>{_INFO})\n"
    )
    partial = rf"^[ \t>]{{0,40}}|(?:^[ \t>]{{0,40}})?(?:(?<!`)`{{1,40}}|(?<!~)~{{1,40}}){_INFO}"
    stops = ("```\n", "~~~\n")
    tools = False
    marks = ()

    def enter(self, match: re.Match[str]) -> Block | None:
        """A call where the info string says Python, else text that may hold backticks. None: an inline run of them."""
        ticks, info = match["fence_ticks"], match["fence_info"].rstrip("\r")
        python = _PYTHON.fullmatch(info) is not None
        inline = match["fence_line"] is None
        if inline and not python and not _LANGUAGE.fullmatch(info):
            return None  # ticks within a line open a block only with a language
        indent = 8 if inline else len(match["fence_line"]) + 3
        notes = {"ticks": ticks, "indent": indent, "bare": not info.strip(), "quote": "", "seen": match.end()}
        return Block("call" if python else "text", match.start(), match.end(), match.end(), notes)

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """Ticks as many as opened it that end a line; a block without a language ends where Python begins."""
        notes = block.notes
        for found in _closers(notes["ticks"], final).finditer(text, block.resume):
            if (interrupted := self._interrupted(text, block, found.start())) is not None:
                return interrupted
            line = max(text.rfind("\n", 0, found.start()) + 1, block.body)
            run = len(found[0]) - len(found[0].lstrip(notes["ticks"][0]))
            before = text[line : found.start()]
            if not before.strip(" \t>"):
                if len(before) <= notes["indent"]:
                    return line, found.end()
            elif run == len(notes["ticks"]) and not (block.kind == "call" and _quoted(text, block, found.start())):
                return found.start(), found.end()
            block.resume = found.end()
        if (interrupted := self._interrupted(text, block, len(text))) is not None:
            return interrupted
        block.resume = max(block.resume, len(text) - 200)  # longer than any closer
        return None

    def _interrupted(self, text: str, block: Block, before: int) -> Span | None:
        """A block without a language ends where Python begins: it was a stray closer, or nothing that was closed."""
        if not block.notes["bare"]:
            return None
        found = _PYTHON_LINE.search(text, block.notes["seen"], before)
        if found is None:
            block.notes["seen"] = max(block.notes["seen"], before - 200)  # longer than any opener
            return None
        return found.start(), found.start()

    def calls(self, body: str, block: Block) -> list[Call]:
        """The code, without common indentation and the marks of a quotation."""
        lines = body.split("\n")
        if body.strip() and all(line.lstrip().startswith(">") for line in lines if line.strip()):  # a quotation
            lines = [re.sub(r"^[ \t]*> ?", "", line) for line in lines]
        return code_call("\n".join(lines))

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        ticks = "```"
        while ticks in arguments["code"]:
            ticks += "`"
        return f"{ticks}python\n{arguments['code']}\n{ticks}\n"


def code_call(body: str) -> list[Call]:
    """The call of `python` that this code is."""
    code = dedent(body).strip("\r\n").rstrip()
    return [Call("python", {"code": code}, "" if code.strip() else "the code is empty")]


def _closers(ticks: str, final: bool) -> re.Pattern[str]:
    """Ticks that end a line."""
    key = (ticks, final)
    if key not in _PATTERNS:
        char = re.escape(ticks[0])
        newline = r"(?:\n|\Z)" if final else r"\n"
        _PATTERNS[key] = re.compile(rf"(?<!{char}){char}{{{len(ticks)},60}}[ \t\r]{{0,100}}{newline}")
    return _PATTERNS[key]


_PATTERNS: dict[tuple[str, bool], re.Pattern[str]] = {}


def _quoted(text: str, block: Block, at: int) -> bool:
    """Whether `at` is within a string of three quotes. Positions must not go back."""
    notes = block.notes
    position, quote = notes["seen"], notes["quote"]
    while position < at:
        found = (_REST[quote] if quote else _STRINGS).search(text, position, at)
        if found is None:
            break
        position = found.end()
        if found.group() == quote:
            quote = ""
        elif not quote and found.group() in _REST:
            quote = found.group()
    notes["seen"], notes["quote"] = at, quote
    return bool(quote)
