"""Call syntaxes: how a policy writes a call. One file a family of models, one small class a syntax.

A syntax says where a call opens, where it ends, and what its body means; `envs.text.parse` does the scanning. One from
outside is a class with these attributes, named "package.module:Class" or by an entry point `solostream.syntax`. Its
openers begin with "<", with "[" or with a line: another opener then never hides in one that is not finished yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

from solostream import registry
from solostream.errors import UserError

Span = tuple[int, int]


@dataclass(slots=True)
class Block:
    """What was opened and is not closed yet: a call, text that cannot hold one, or a thought. Positions in the turn."""

    kind: Literal["call", "text", "thought"]
    start: int
    body: int
    resume: int  # nothing before this can hold the end
    notes: dict[str, Any] = field(default_factory=dict)  # the syntax's own: what it read in the opener, how far it is


@dataclass(frozen=True, slots=True)
class Call:
    """What a body says: a tool and its arguments, or why it says none."""

    name: str
    arguments: Mapping[str, Any]
    error: str = ""


class Syntax(Protocol):
    """`how`: one sentence to the policy. `opener`: a regular expression (multiline; names of its groups begin with the
    syntax's); `partial`: what at the end of a text may still become one.

    tools: whether a call names its tool (else all are `python`). stops: strings that may end a call, for an engine.
    marks: what the chat template of a model that writes so holds, all of them. An attribute `output`, where it has one,
    is the frame around what comes back.
    """

    name: str
    how: str
    opener: str
    partial: str
    stops: tuple[str, ...]
    tools: bool
    marks: tuple[str, ...]

    def enter(self, match: re.Match[str]) -> Block | None:
        """What `opener` opened; None: nothing."""
        ...

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """Where the body ends and where the block does; None: not yet. final: no more text will come."""
        ...

    def calls(self, body: str, block: Block) -> list[Call]:
        """The calls in a body; none where it turns out to be text."""
        ...

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The call as a policy would write it: for examples and traces. Where `tools` is false, `name` is `python`."""
        ...


@lru_cache
def syntax(name: str) -> Syntax:
    """Raises UserError for a name that nothing has."""
    made: Syntax = registry.make("syntax", name)
    return made


def syntaxes(names: str | Sequence[str]) -> tuple[str, ...]:
    """One or several names, checked. Raises UserError."""
    chosen = (names,) if isinstance(names, str) else tuple(names)
    if not chosen:
        raise UserError(f"no call syntax given; name at least one of: {', '.join(registry.names('syntax'))}")
    if "auto" in chosen:
        raise UserError('syntax = "auto" is chosen from a model\'s chat template, and here is none: name the syntax')
    openers: dict[str, str] = {}
    for name in chosen:
        for opener in re.split(r"(?<!\\)\|", syntax(name).opener):
            other = openers.setdefault(opener, name)
            if other != name:
                raise UserError(f"the syntaxes {other!r} and {name!r} open a call alike: choose one")
    return chosen


def detect(template: str) -> str:
    """The syntax in which a model with this chat template was taught to call; "fence" where it was taught none."""
    for name in registry.BUILT_IN["syntax"]:
        marks = syntax(name).marks
        if marks and all(mark in template for mark in marks):
            return name
    return "fence"


def prefixes(literal: str) -> str:
    """A regular expression for every beginning of `literal` that is not all of it."""
    pattern = ""
    for char in reversed(literal[1:-1]):
        pattern = f"(?:{re.escape(char)}{pattern})?"
    return re.escape(literal[0]) + pattern


def framed(names: Sequence[str], output: str) -> str:
    """A call's output as a policy of these syntaxes sees it."""
    frame = next((one.output for one in map(syntax, names) if hasattr(one, "output")), "{}")
    return str(frame.format(output))


def find(text: str, literal: str, block: Block) -> Span | None:
    """The first `literal` behind `block.resume`, which is moved up."""
    at = text.find(literal, block.resume)
    if at >= 0:
        return at, at + len(literal)
    block.resume = max(block.resume, len(text) - len(literal) + 1)
    return None
