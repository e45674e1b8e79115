r"""The final answer of a turn, in one of five styles.

`boxed`: the last `\boxed{…}`. `tag`: `<answer>…</answer>`. `line`: `Answer: …` on a line, or "the answer is …".
`last_number`: the last number of a turn that calls nothing. `auto`: the first of these, in this order, that is there; a
small model that has never heard of `\boxed` still gets a reward to learn from. Which one matched is recorded.

Only prose counts: calls, fenced blocks in any language and thinking are passed over, and so are empty answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from solostream import registry
from solostream.envs.text.parse import Parsed
from solostream.envs.text.syntax import Span
from solostream.errors import UserError

AnswerStyle = str  # a name of the registry's kind "answer", or "auto"
AUTO = ("boxed", "tag", "line", "last_number")  # what "auto" tries, in this order
_BOXED = re.compile(r"\\boxed\s{0,8}\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed(?![A-Za-z])[ \t]{0,8}\$?(?=[-−+(\[\d.\\|]|[A-J](?![A-Za-z]))")
_LONGEST_BARE = 200  # characters of what a box without braces holds
_LINE = re.compile(r"^[ \t*#]{0,16}(?:final )?answer[*]{0,4} ?[:=](?P<answer>.+)$", re.IGNORECASE | re.MULTILINE)
# a heading or a line that says so, and the answer on a line of its own behind it, in display math or not
_BELOW = re.compile(
    r"(?:^[ \t*]{0,16}(?:final )?answer[*]{0,4} ?:|^#{1,6} ?[*]{0,4}(?:final )?answer"
    r"|\b(?:answer|result) (?:is|equals)[*]{0,4} ?:):?[*]{0,4}"
    r"[ \t\r]{0,16}\n(?:[ \t\r]{0,16}\n){0,2}(?:[ \t]{0,16}(?:\$\$|\\\[)[ \t\r]{0,16}\n)?"
    r"[ \t]{0,16}(?P<answer>[^\s`~<#][^\n]{0,80})$",
    re.IGNORECASE | re.MULTILINE,
)
# to the end of the sentence: a full stop before a space; one between digits is a decimal point
_PHRASE = re.compile(
    r"\b(?:answer|result) (?:is|equals)(?: ?:)?(?P<answer>[^\n]+?)"
    r"(?=[.!?]?[*]{0,2}(?:$|\n)|[.!?;][*]{0,2} |,? (?:because|since|as|so|which)\b)",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.])(?:[-−]\s?)?(?:\\?\$ ?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?(?:/\d+)?(?:\\?%)?",
    re.ASCII,
)
_FENCE_LINE = re.compile(r"^ {0,3}(?P<ticks>`{3,})(?P<info>[^`\n]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """An answer, where it begins in the text, and the style that matched."""

    answer: str
    position: int
    style: AnswerStyle


class Extractor(Protocol):
    """An answer style: `answer = "module:function"`. An attribute `how` is its sentence of the default prompt."""

    def __call__(self, text: str, /) -> Iterable[tuple[str, int]]:
        """(answer, where it begins) for every candidate in the text, in order; the last one that counts is taken."""
        ...


@lru_cache
def extractor(style: str) -> Extractor:
    """Raises UserError for a style that nothing has."""
    found: Extractor = registry.load("answer", style)
    if not callable(found):
        raise UserError(f"answer '{style}' is a {type(found).__name__}: it is a function from text to candidates")
    return found


def check_style(style: str) -> None:
    """Raises UserError for a style that nothing has."""
    if style != "auto":
        extractor(style)


def final_answer(text: str, parsed: Parsed, style: AnswerStyle = "boxed") -> tuple[str, int] | None:
    """(answer, position where it begins) or None. `parsed` is the parse of the same `text`. Linear in the text."""
    found = find_answer(text, parsed, style)
    return (found.answer, found.position) if found else None


def find_answer(text: str, parsed: Parsed, style: AnswerStyle = "boxed") -> FoundAnswer | None:
    """`final_answer`, and the style by which it was found: with `auto`, one of the others."""
    hidden = bytearray(len(text))
    for start, end in {call.span for call in parsed.calls} | {*parsed.thinking, *_fenced(text)}:
        hidden[start:end] = b"x" * (end - start)
    for name in AUTO if style == "auto" else (style,):
        if name == "last_number" and parsed.calls:
            continue  # numbers beside a call are on the way to an answer
        for answer, start in reversed(list(extractor(name)(text))):
            if answer.strip() and not hidden[start]:
                return FoundAnswer(answer.strip(), start, name)
    return None


def boxed(text: str) -> Iterator[tuple[str, int]]:
    r"""Every `\boxed{…}` with its braces balanced, and `\boxed5`; where it begins, in the order of the text."""
    closers: dict[int, int] = {}  # one past "{" -> its "}", all pairs in one pass
    unclosed: list[int] = []
    for match in _BRACES.finditer(text):
        if match.group() == "{":
            unclosed.append(match.end())
        elif match.group() == "}" and unclosed:
            closers[unclosed.pop()] = match.start()
    found = [(text[m.end() : closers[m.end()]], m.start()) for m in _BOXED.finditer(text) if m.end() in closers]
    found += [(_bare(text, m.end(), closers), m.start()) for m in _BARE_BOX.finditer(text)]
    yield from sorted(found, key=lambda pair: pair[1])


def _bare(text: str, start: int, closers: dict[int, int]) -> str:
    r"""What `\boxed5` or `\boxed \frac{1}{2}` holds: up to a space, a dollar sign or the end of the formula."""
    at, end = start, min(len(text), start + _LONGEST_BARE)
    if text[start] in "([":  # a pair may hold spaces
        at = max(start, text.find(")" if text[start] == "(" else "]", start, end))
    while at < end and text[at] not in " \t\n$}" and not text.startswith(("\\)", "\\]"), at):
        if text[at] == "{":
            if at + 1 not in closers:
                break
            at = closers[at + 1]
        at += 2 if text[at] == "\\" else 1
    return text[start:at].rstrip(".,;:!?*")


def line(text: str) -> Iterator[tuple[str, int]]:
    """Every "Answer: …", with the answer there or a line below, and "the answer is …"; where it begins, in order."""
    found = [(match["answer"], match.start()) for match in _LINE.finditer(text)]
    found += [(match["answer"], match.start()) for pattern in (_PHRASE, _BELOW) for match in pattern.finditer(text)]
    for answer, start in sorted(found, key=lambda pair: pair[1]):
        yield answer.strip(" \t\r*:"), start


def tag(text: str) -> Iterator[tuple[str, int]]:
    """Every `<answer>…</answer>`, and where it begins."""
    start = text.find("<answer>")
    while start >= 0 and (end := text.find("</answer>", start)) >= 0:
        yield text[start + len("<answer>") : end], start
        start = text.find("<answer>", end)


def last_number(text: str) -> Iterator[tuple[str, int]]:
    """Every number, and where it begins: the last one counts."""
    for match in _NUMBER.finditer(text):
        yield match.group(), match.start()


def _fenced(text: str) -> Iterator[Span]:
    """Closed fenced blocks, whatever their language."""
    opened: re.Match[str] | None = None
    for match in _FENCE_LINE.finditer(text):
        if opened is None:
            opened = match
        elif len(match["ticks"]) >= len(opened["ticks"]) and not match["info"].strip():
            yield opened.start(), match.end()
            opened = None
