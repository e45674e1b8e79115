"""Find the calls that a policy wrote: one scanner, fed the whole turn or token by token, with the same result.

What a call looks like the syntaxes say (`envs.text.syntax`), one or several at a time. A block that has no closer is
`unclosed` and reaches to the end; a body that says no call is `malformed`; so is the try of a turn without any call to
write one in another form (`near_miss`). Each of these says in its arguments' `error` what was expected.

`think` says what calls inside `<think>` mean: `run` them or `skip` them; `prefilled` (skip) and `prefilled-run` (run):
the turn begins inside, because the chat template wrote the opening tag or an earlier turn left it open. A tag in quotes
is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from solostream.envs.text.near_miss import near_miss
from solostream.envs.text.syntax import Block, Call, Span, Syntax, prefixes, syntax, syntaxes
from solostream.envs.types import CallStatus, ToolCall
from solostream.errors import UserError

Think = Literal["run", "skip", "prefilled", "prefilled-run"]

_QUOTES = "'\"`“”‘’"
_TAGS = ("<think>", "</think>", "[THINK]", "[/THINK]")
_TAG = "|".join(map(re.escape, _TAGS))
# In quotes: one before it and one behind it. While the text grows, the one behind may still come.
_UNQUOTED = {
    final: rf"(?:(?<![{_QUOTES}])(?:{_TAG})|(?:{_TAG}){rf'(?![{_QUOTES}])' if final else rf'(?=[^{_QUOTES}])'})"
    for final in (False, True)
}
_PARTIAL_TAG = "|".join([*map(prefixes, _TAGS), rf"(?<=[{_QUOTES}])(?:{_TAG})"])


@dataclass(frozen=True, slots=True)
class Parsed:
    """`calls` in order; `thinking`: spans of thoughts with their tags (an open one reaches to the end).

    inside: the turn ended in a thought that a later one goes on with. near_miss: its only call is no more than a try.
    """

    calls: tuple[ToolCall, ...]
    thinking: tuple[Span, ...]
    inside: bool = False
    near_miss: bool = False


@dataclass(frozen=True, slots=True)
class _Grammar:
    """The patterns of some syntaxes together. openers: by whether the text is all there."""

    syntaxes: tuple[Syntax, ...]
    openers: dict[bool, re.Pattern[str]]
    partial: re.Pattern[str]


# Patterns take long to compile and are the same for every turn of a run.
@lru_cache
def _grammar(names: tuple[str, ...]) -> _Grammar:
    chosen = tuple(syntax(name) for name in names)
    # One pattern for all that can begin, so that whatever begins first in the text is met first. The name of the group
    # that matched says what it was: s0, s1, ... a syntax by its place, or a thought.
    openers = [f"(?P<s{place}>{one.opener})" for place, one in enumerate(chosen)]
    either = {
        final: re.compile("|".join([*openers, f"(?P<think>{_UNQUOTED[final]})"]), re.MULTILINE)
        for final in (False, True)
    }
    # What may be the first characters of an opener that is still being sampled: the scan waits there for more.
    partials = "|".join([*(one.partial for one in chosen), _PARTIAL_TAG])
    return _Grammar(chosen, either, re.compile(rf"(?:{partials})\Z", re.MULTILINE))


def stops(names: Sequence[str]) -> tuple[str, ...]:
    """Strings that may end a call in these syntaxes: hints for an engine. Whether one did, a parser says."""
    # Several syntaxes may end alike: an engine looks for each string once.
    every = [stop for name in names for stop in syntax(name).stops]
    return tuple(dict.fromkeys(every))


def names_tools(names: Sequence[str]) -> bool:
    """Whether calls in one of these syntaxes name their tool: the chat template tells of the tools then."""
    return any(syntax(name).tools for name in names)


def parse(text: str, syntax: str | Sequence[str] = "fence", *, think: Think = "run") -> Parsed:
    """All calls of one whole turn. Never raises on any text; raises UserError on an unknown syntax."""
    # The scanner that reads a turn while it is sampled, fed at once: whole texts cannot be read differently.
    parser = Parser(syntax, think=think)
    parser.feed(text)
    return parser.finish()


def begun(think: Think, inside: bool) -> Think:
    """What `think` says of a turn that begins inside a thought (the template opened one, or a call interrupted it)."""
    if not inside:
        return think
    # What calls in thoughts mean stays what it was; only where the turn begins is another place.
    return "prefilled" if think in ("skip", "prefilled") else "prefilled-run"


def thought_tag(text: str) -> tuple[bool, Span] | None:
    """The first tag of a thought in `text`: (whether it opens one, where it stands); None where there is none."""
    found = re.search(_UNQUOTED[True], text)
    return None if found is None else ("/" not in found.group(), found.span())


def ends_inside(turns: Iterable[str], syntax: Sequence[str], think: Think, opened: bool) -> bool:
    """Whether `turns`, seen without any before them, end in a thought. opened: the template opens one in each."""
    inside = False
    for text in turns:
        # Each turn begins where the one before it ended.
        begins = begun(think, inside or opened)
        inside = parse(text, syntax, think=begins).inside
    return inside


def _first_call(text: str, name: str) -> Span | None:
    """Where the first call in the syntax `name` stands."""
    parser = Parser(name)
    parser.feed(text)
    # Without the look for near misses: this is a part of it.
    parser._finish()
    if not parser._calls:
        return None
    return parser._calls[0].span


class Parser:
    """The incremental form: `feed` pieces as they are sampled, stop the turn at the position it returns."""

    def __init__(self, syntax: str | Sequence[str] = "fence", *, think: Think = "run") -> None:
        known = get_args(Think)
        if think not in known:
            raise UserError(f"unknown think policy {think!r}; one of: {', '.join(known)}")
        self.stop: int | None = None  # end of the first closed call, in characters of all that was fed

        # What is looked for: the syntaxes' openers, and whether calls in thoughts are passed over.
        self._names = syntaxes(syntax)
        self._grammar = _grammar(self._names)
        self._skips = think in ("skip", "prefilled")

        # Where the scan stands: in the open, looking for an opener, or in a block, looking for its closer. What lies
        # before `_resume` is never looked at again, so that a turn costs time linear in its length.
        self._text = ""
        self._resume = 0
        self._block: Block | None = None
        if think == "prefilled":
            self._block = Block("thought", 0, 0, 0)
        self._syntax: Syntax | None = None  # of the block; None: a thought between tags

        # What was found. Where calls in thoughts run, a thought is no block: only its start is kept until its end.
        self._calls: list[ToolCall] = []
        self._thinking: list[Span] = []
        self._think_start: int | None = 0 if think == "prefilled-run" else None

    @property
    def text(self) -> str:
        """All that was fed."""
        return self._text

    @property
    def inside_call(self) -> bool:
        """Whether what was fed ends in a call that is still open."""
        return self._block is not None and self._block.kind == "call"

    def feed(self, piece: str) -> int | None:
        """Returns where the turn must stop, once a closed call has been seen: one past its last character."""
        # A string with a lone reference grows in place, so a long turn costs no copy a token: the parser lets go of it
        # for the moment in which it grows.
        text = self._text
        self._text = ""
        text += piece
        self._text = text
        self._scan(final=False)
        return self.stop

    def finish(self) -> Parsed:
        """The turn is over: what is open now stays unclosed."""
        inside = self._finish()

        missed = False
        # A turn without any call may have tried one in a form that is none here: the policy is told, not passed over.
        if not self._calls:
            hidden = self._thinking if self._skips else []
            found = near_miss(self._text, self._names, hidden, _first_call)
            if found:
                missed = True
                self._calls.append(found)

        calls = tuple(self._calls)
        thinking = tuple(self._thinking)
        return Parsed(calls, thinking, inside, missed)

    def _finish(self) -> bool:
        """Whether the text ends in a thought."""
        self._scan(final=True)
        end = len(self._text)
        inside = False
        block = self._block
        # A block that is still open reaches to the end. A thought of a syntax's own (a channel, say) ends with the
        # turn, one between tags goes on in the next.
        if block is not None:
            if block.kind == "thought":
                self._thinking.append((block.start, end))
                inside = self._syntax is None
            elif block.kind == "call":
                self._add(block, end, end, closed=False)
            self._block = None
        # Where calls in thoughts run, an open thought is no block but a start without an end.
        if self._think_start is not None:
            self._thinking.append((self._think_start, end))
            inside = True
        self._think_start = None
        self._resume = end
        return inside

    def _scan(self, final: bool) -> None:
        """Go on as far as the text says what it is; `final`: no more of it will come."""
        # Inside a block its closer is looked for, outside one the next opener: never both, so a fence in a string of a
        # call, or a call in a thought, is what it stands in.
        going = True
        while going:
            going = self._close(final) if self._block else self._open(final)

    def _open(self, final: bool) -> bool:
        """Enter the next block; False when there is none yet."""
        match = self._grammar.openers[final].search(self._text, self._resume)
        # Nothing begins here. The tail may still become an opener: the next look starts at it, or at the end.
        if match is None:
            partial = self._grammar.partial.search(self._text, self._resume)
            self._resume = partial.start() if partial else len(self._text)
            return False

        # The name of the group says what begins: a thought, or a call in the syntax of that number.
        kind = match.lastgroup
        assert kind is not None
        self._resume = match.end()
        if kind == "think":
            opens = "/" not in match.group()
            self._mark_think(opens, match.start(), match.end())
        else:
            # A syntax may find that this is no call after all: then there is no block, and the scan goes on behind it.
            place = int(kind.removeprefix("s"))
            self._syntax = self._grammar.syntaxes[place]
            self._block = self._syntax.enter(match)
        return True

    def _mark_think(self, opens: bool, start: int, end: int) -> None:
        """A tag of a thought at [start, end). Skipped thoughts are blocks, in which no call is looked for."""
        if opens and self._skips:
            self._block = Block("thought", start, end, end)
            self._syntax = None
        # A second opener inside a thought does not begin another one.
        elif opens:
            if self._think_start is None:
                self._think_start = start
        # A closer ends the thought that is open. One without any opener: the turn began inside.
        elif self._think_start is not None or not self._thinking:
            self._thinking.append((self._think_start or 0, end))
            self._think_start = None

    def _close(self, final: bool) -> bool:
        """Leave the open block; False when its closer has not come yet."""
        block = self._block
        assert block is not None
        # Each syntax knows how its calls end; tags of thoughts are the same in all of them.
        found = self._syntax.end(self._text, block, final) if self._syntax else self._thought_end(block, final)
        if found is None:
            return False

        body_end, end = found
        # The first closed call ends the turn; a block that turned out to hold none (an example, say) does not.
        if block.kind == "thought":
            self._thinking.append((block.start, end))
        elif block.kind == "call":
            holds_a_call = self._add(block, body_end, end, closed=True)
            if holds_a_call and self.stop is None:
                self.stop = end
        self._block = None
        self._resume = end
        return True

    def _thought_end(self, block: Block, final: bool) -> Span | None:
        """Where the closing tag of a skipped thought stands."""
        tags = re.compile(_UNQUOTED[final])
        # An opener inside a thought is a part of it.
        for match in tags.finditer(self._text, block.resume):
            if "/" in match.group():
                return match.span()
        # The next look starts where a tag could have begun whose last characters have not been sampled yet.
        block.resume = max(block.resume, len(self._text) - len("[/THINK]"))
        return None

    def _add(self, block: Block, body_end: int, end: int, *, closed: bool) -> bool:
        """Whether the body held a call."""
        assert self._syntax is not None
        body = self._text[block.body : body_end]
        found = self._syntax.calls(body, block)
        # Of a block that is cut off only the first is told: the rest may be halves of what was meant.
        told = found if closed else found[:1]
        span = (block.start, end)
        self._calls += [self._call(one, span, closed) for one in told]
        return bool(found)

    def _call(self, found: Call, span: Span, closed: bool) -> ToolCall:
        assert self._syntax is not None
        if closed and not found.error:
            return ToolCall(found.name, found.arguments, span)
        # The policy reads this as the answer to its call: what was wrong, and how it is written.
        why = found.error if closed else "it is not closed"
        told = f"{why}. {self._syntax.how}"
        status: CallStatus = "malformed" if closed else "unclosed"
        return ToolCall(found.name, {**found.arguments, "error": told}, span, status)
