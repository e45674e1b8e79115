"""Count and cut text in tokens, on a floor that knows no tokenizer: any pair of `encode` and `decode` will do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from solostream import hub
from solostream.errors import UserError
from solostream.sandbox.types import check_timeout

MARKER = "\n[… {} tokens cut …]\n"
_MARKED = re.compile(r"\n?\[… \d+ tokens cut …\]\n?")  # whoever stored it may have stripped the ends
_NOTE = re.compile(r"\n\[turns left: \d+(?:, tokens left: \d+)?\]\Z")


class TokenCounter(Protocol):
    """Ids may be of any kind: they are only counted, cut and decoded."""

    def encode(self, text: str, /) -> Sequence[int]:
        """The tokens of `text`, without special ones."""

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of `ids`: the inverse of `encode`."""


class ApproximateTokens:
    """Three characters a token: no tokenizer needed, and rather too many tokens than too few.

    (Current vocabularies average 3 to 4.5 characters a token on English and code, 1 to 3 on digits.) The ids are 63-bit
    packings of three code points, so that `decode(encode(text)) == text`.
    """

    def encode(self, text: str, /) -> list[int]:
        """Three characters a token, packed into one number."""
        points = [ord(char) + 1 for char in text]
        points += [0] * (-len(points) % 3)
        return [a | b << 21 | c << 42 for a, b, c in zip(points[::3], points[1::3], points[2::3], strict=True)]

    def decode(self, ids: Sequence[int], /) -> str:
        """The characters that `encode` packed."""
        points = (token >> shift & 0x1FFFFF for token in ids for shift in (0, 21, 42))
        return "".join(chr(point - 1) for point in points if point)


class _Plain:
    """A Hugging Face tokenizer, of either library, that neither adds nor drops special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, /) -> Sequence[int]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        ids: Sequence[int] = getattr(encoded, "ids", encoded)
        return ids

    def decode(self, ids: Sequence[int], /) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


@lru_cache(maxsize=8)
def _named(name: str) -> TokenCounter:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("counting with a model's tokenizer needs it: pip install tokenizers") from None
    local = Path(name, "tokenizer.json") if Path(name).is_dir() else Path(name)
    try:
        with hub.asked(name):
            return _Plain(Tokenizer.from_file(str(local)) if local.is_file() else Tokenizer.from_pretrained(name))
    except (
        Exception
    ) as error:  # the library raises bare Exception for a missing file, a bad file, a name it cannot reach
        raise UserError(
            f"no tokenizer at {name!r} ({error}); give a folder with tokenizer.json or a model id that is in the cache"
        ) from None


def token_counter(source: str | TokenCounter | Callable[[], TokenCounter] | None) -> TokenCounter:
    """A folder or model id, a Hugging Face tokenizer, a `TokenCounter`, a factory of one, or None: the approximation.

    Raises UserError when there is no such tokenizer.
    """
    if source is None:
        return ApproximateTokens()
    if isinstance(source, str):
        return _named(source)
    if hasattr(source, "add_special_tokens"):
        return _Plain(source)
    if not isinstance(source, type) and hasattr(source, "encode") and hasattr(source, "decode"):
        return source
    return source()


def clip(text: str, cap: int, counter: TokenCounter) -> str:
    """`text` within `cap` tokens: head and tail are kept, and the marker between them counts too."""
    if len(text.encode(errors="replace")) <= cap:  # no token is shorter than a byte
        return text
    ids = counter.encode(text)
    if len(ids) <= cap:
        return text
    marker_size = len(counter.encode(MARKER.format(len(ids))))
    for kept in range(cap - marker_size, 0, -1):  # joining pieces may split tokens: then keep fewer
        head = (kept + 1) // 2
        tail = _text(counter, ids[len(ids) - (kept - head) :]) if kept > head else ""
        short = _text(counter, ids[:head]) + MARKER.format(len(ids) - kept) + tail
        if len(counter.encode(short)) <= cap:
            return short
    for kept in range(cap, 0, -1):  # no room for the marker
        short = _text(counter, ids[:kept])
        if len(counter.encode(short)) <= cap:
            return short
    return ""


def cuts(text: str) -> list[tuple[str, str]]:
    """(head, tail) wherever `clip` may have cut: the text before and behind each marker, of which one is its own."""
    return [(text[: found.start()], text[found.end() :]) for found in _MARKED.finditer(text)]


def _text(counter: TokenCounter, ids: Sequence[int]) -> str:
    """Decoded, without the halves of characters at the cuts."""
    return counter.decode(ids).strip("\ufffd")


def check_limits(time_limit_s: float | None, **limits: int | None) -> None:
    """Raises UserError that names the limits which leave nothing to do, or are no such numbers; None is no limit.

    limits: whole numbers.
    """
    if time_limit_s is not None:
        check_timeout(time_limit_s, "time_limit_s")
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if odd := [name for name, limit in given.items() if not isinstance(limit, Integral) or limit < 1]:
        raise UserError(f"{', '.join(odd)} must be at least 1, a whole number")


def budget_note(turns: int, tokens: int | None, messages: Sequence[str], count: Callable[[str], int]) -> str:
    """What the policy may still spend after reading `messages`, whose last ends with this note: it costs tokens too.

    tokens: what was left before `messages`; None: the episode has no such budget.
    """
    note = f"\n[turns left: {turns}"
    if tokens is None:
        return f"{note}]"
    *others, last = messages
    left = tokens - sum(map(count, others))
    left -= count(f"{last}{note}, tokens left: {left}]")  # no smaller number is longer
    return f"{note}, tokens left: {max(left, 0)}]"


def without_note(text: str) -> str:
    """What a tool said before `budget_note` was added to it."""
    return _NOTE.sub("", text)
