r"""The final answer of a turn: the last `\boxed{…}` (`boxed`), `Answer: …` (`line`) or `<answer>…</answer>` (`tag`).

Only prose counts: calls, fenced blocks in any language and thinking are passed over, and so are empty answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from solostream.envs.text.parse import Parsed, Span

AnswerStyle = Literal["boxed", "line", "tag"]
_BOXED = re.compile(r"\\boxed\s{0,8}\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_LINE = re.compile(r"^[ \t*#]{0,16}(?:final )?answer[*]{0,4} ?:(?P<answer>.+)$", re.IGNORECASE | re.MULTILINE)
_FENCE_LINE = re.compile(r"^ {0,3}(?P<ticks>`{3,})(?P<info>[^`\n]*)$", re.MULTILINE)


def final_answer(text: str, parsed: Parsed, style: AnswerStyle = "boxed") -> tuple[str, int] | None:
    """(answer, position where it begins) or None. `parsed` is the parse of the same `text`. Linear in the text."""
    hidden = bytearray(len(text))
    for start, end in {call.span for call in parsed.calls} | {*parsed.thinking, *_fenced(text)}:
        hidden[start:end] = b"x" * (end - start)
    for answer, start in reversed(list(_CANDIDATES[style](text))):
        if answer.strip() and not hidden[start]:
            return answer.strip(), start
    return None


def _boxed(text: str) -> Iterator[tuple[str, int]]:
    closers: dict[int, int] = {}  # one past "{" -> its "}", all pairs in one pass
    unclosed: list[int] = []
    for match in _BRACES.finditer(text):
        if match.group() == "{":
            unclosed.append(match.end())
        elif match.group() == "}" and unclosed:
            closers[unclosed.pop()] = match.start()
    for match in _BOXED.finditer(text):
        if match.end() in closers:
            yield text[match.end() : closers[match.end()]], match.start()


def _lines(text: str) -> Iterator[tuple[str, int]]:
    for match in _LINE.finditer(text):
        yield match["answer"].strip(" \t\r*"), match.start()


def _tags(text: str) -> Iterator[tuple[str, int]]:
    start = text.find("<answer>")
    while start >= 0 and (end := text.find("</answer>", start)) >= 0:
        yield text[start + len("<answer>") : end], start
        start = text.find("<answer>", end)


_CANDIDATES = {"boxed": _boxed, "line": _lines, "tag": _tags}


def _fenced(text: str) -> Iterator[Span]:
    """Closed fenced blocks, whatever their language."""
    opened: re.Match[str] | None = None
    for match in _FENCE_LINE.finditer(text):
        if opened is None:
            opened = match
        elif len(match["ticks"]) >= len(opened["ticks"]) and not match["info"].strip():
            yield opened.start(), match.end()
            opened = None
