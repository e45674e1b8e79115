r"""The shape of an answer: a list, a pair, a set, an interval, a matrix, a relation, a number with a unit, words.

`read` takes apart what was written, down to atoms, and evaluates nothing. The shape decides what is compared with what:
the order of a pair counts, that of a set does not; `(0, 1)` is a pair to a pair and an interval to `0 < x < 1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from solostream.envs.rewards.grading.literals import Number
from solostream.envs.rewards.grading.text import enclosed, outside, split
from solostream.envs.rewards.grading.units import Measure, compound, measure

Kind = Literal["list", "bracket", "set", "matrix", "union", "relation", "any", "all", "ratio", "base", "words", "atom"]


@dataclass(frozen=True, slots=True)
class Node:
    """One part of an answer.

    kind: `list` is bare (`1, 2`), `bracket` a pair or an interval with its `brackets` (`(]`), `any`/`all` relations
    joined by or/and. text: as it was written. name: what it is said to be (`x` of `x = 5`). signs: between the parts of
    a relation.
    """

    kind: Kind
    text: str
    parts: tuple[Node, ...] = ()
    brackets: str = ""
    signs: tuple[str, ...] = ()
    name: str = ""
    measure: Measure | None = None

    @property
    def number(self) -> Number | None:
        """The number that it is, without its unit; None where it is none."""
        return self.measure.number if self.measure else None


_SEMICOLON = re.compile(r";")
_COMMA = re.compile(r",")
_SPACED_COMMA = re.compile(r",(?= )|;")
_OR = re.compile(r",? \bor\b |(?<=[^A-Za-z\\])or(?=[^A-Za-z])")
_AND = re.compile(r",? ?(?<![A-Za-z\\])and(?![A-Za-z]) ?|,? ?\\& ?|,? & ")
_UNION = re.compile(r"\\cup(?![A-Za-z])|(?<=[)\]}]) ?(?:U|\|) ?(?=[(\[{\\])")
_SIGNS = re.compile(r"\\(?:le|ge|ne|in|approx|equiv|notin|subset|subseteq)(?![A-Za-z])|=|<|>")
_RATIO = re.compile(r"(?<!:):(?!:)|(?<=[\d)}]) to (?=[\d(\\])")
_UNIT_VECTOR = re.compile(
    r"(?P<sign>[+-]?)(?P<factor>(?:\\[A-Za-z]+|[^\\+\-ijkA-Za-z]|\{[^{}]*\})*)(?<![A-Za-z])(?P<unit>[ijk])"
)
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\*?\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\*?\}", re.DOTALL)
_NAME = re.compile(
    r"(?:m ?)?(?:\\angle ?)?(?:\\?[A-Za-z]{1,9}'{0,2}(?: ?_ ?(?:\{[^{}]{1,20}\}|[A-Za-z0-9]))?(?: ?\^ ?\{? ?-1 ?\}?)?)"
    r"(?: ?\( ?\\?[a-zA-Z]{1,7}(?: ?, ?\\?[a-zA-Z]{1,7}){0,4} ?\))?"
    r"|\( ?[a-zA-Z](?: ?, ?[a-zA-Z]){1,5} ?\)|[a-zA-Z](?: ?: ?[a-zA-Z]){1,5}"
)
_BASE = re.compile(r"(?P<digits>[0-9A-Z]{1,200}) ?_ ?(?:\{ ?(?P<braced>\d{1,2}) ?\}|(?P<bare>\d{1,2}))", re.ASCII)
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_WORDS = re.compile(r"[^\W\d_][^\W\d_'’\- .&]*(?:[ '’\-.&]+[^\W\d_]+)*[.!]?")
_BUILDER = re.compile(
    r"(?P<name>\\?[A-Za-z]{1,7})(?: ?\\in ?(?:\\mathbb ?\{?[A-Z]\}?|\\R))? ?[|:] ?(?P<rest>.+)", re.DOTALL
)
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])|\+/-|\+-")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_COMMA_GROUP = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_REALS = re.compile(r"(?:all|any|every|the)(?: the)? reals?(?: numbers?| values?)?", re.IGNORECASE)
MAX_PARTS = 200
# words that are values
_NAMED_TEXT = (
    "pi tau inf infinity Infinity zoo infty EmptySet Reals alpha beta gamma delta epsilon zeta eta theta iota"
    " kappa lambda mu nu xi rho sigma upsilon phi chi psi omega"
)
# … and what begins like a function of something or like a name of a module
_VALUE = re.compile(
    rf"(?:{'|'.join(_NAMED_TEXT.split())})$|(?:(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp|sqrt) |[a-z]+\.[a-z]"
)


def read(text: str, *, items: int = 0, depth: int = 0) -> Node:
    """The shape of `text`, cleaned. items: of the list that is expected, which tells `100,200` from 100200."""
    text = text.strip()
    if depth > 12:
        return Node("atom", text)
    for reader in (
        _compound,
        _unit_vectors,
        _equation_printed,
        _turned_brackets,
        _choices,
        _several,
        _union,
        _relation,
        _bracketed,
        _matrix,
        _named_ratio,
    ):
        found = reader(text, items, depth)
        if found is not None:
            return found
    return _atom(text)


def _compound(text: str, items: int, depth: int) -> Node | None:
    found = compound(text)
    return Node("atom", found.text, measure=found) if found else None


def _unit_vectors(text: str, items: int, depth: int) -> Node | None:
    """`3i - 2j + k` as (3, -2, 1). A complex number has no j."""
    terms = {}
    spaceless, at = text.replace(" ", ""), 0
    while at < len(spaceless):
        match = _UNIT_VECTOR.match(spaceless, at)
        if match is None or match["unit"] in terms or (at and not match["sign"]):
            return None
        factor = re.sub(r"(?:\*|\\cdot)$", "", match["factor"]) or "1"
        terms[match["unit"]], at = match["sign"] + factor, match.end()
    if "i" not in terms or len(terms) < 2:
        return None
    units = "ijk" if "k" in terms else "ij"
    return Node("bracket", text, tuple(_atom(terms.get(unit, "0")) for unit in units), "()")


def _choices(text: str, items: int, depth: int) -> Node | None:
    """Several answers in one: `x = 2 or x = -3`, `21 and 34`, `±2`."""
    if _PLUS_MINUS.search(text) and len(_PLUS_MINUS.findall(text)) == 1 and not re.search(r"[,;]", text):
        both = [_PLUS_MINUS.sub(sign, text) for sign in ("+", "-")]
        return _list(text, both, depth)
    for pattern, kind in ((_OR, "any"), (_AND, "all")):
        pieces = _oxford(text, pattern)
        if len(pieces) > 1:
            parts = tuple(read(piece, depth=depth + 1) for piece in pieces[:MAX_PARTS])
            if all(part.kind in ("relation", "any", "all", "bracket", "union") for part in parts) and any(
                part.kind != "bracket" for part in parts
            ):
                return Node(kind, text, parts)  # type: ignore[arg-type]
            return _list(text, pieces, depth)
    return None


def _oxford(text: str, pattern: re.Pattern[str]) -> list[str]:
    r"""Pieces around a conjunction, with the commas before it: `11, 46, and 82`. One piece: there is none."""
    if re.fullmatch(r"\d+ and \d+ ?/ ?\d+", text):  # two and a half
        return [text]
    pieces = [piece for piece in split(text, pattern) if piece]
    if len(pieces) < 2:
        return pieces
    return [
        part for piece in pieces for part in split(piece, _COMMA if not _THOUSANDS.fullmatch(piece) else _SEMICOLON)
    ]


def _several(text: str, items: int, depth: int) -> Node | None:
    if _THOUSANDS.fullmatch(text) and text.count(",") + 1 != items:
        return None
    pieces = split(text, _SEMICOLON)
    if len(pieces) == 1:
        pieces = split(text, _COMMA)
        spaced = split(text, _SPACED_COMMA)
        # `1,200, 1,300`: commas without a space group thousands where all of them do
        if (
            1 < len(spaced) < len(pieces)
            and len(spaced) != items
            and all(_THOUSANDS.fullmatch(part) or "," not in part for part in spaced)
        ):
            pieces = spaced
        elif len(pieces) > 1 and _measured_thousands(text) and len(pieces) != items:
            return None
    if len(pieces) < 2:
        return None
    return _list(text, pieces, depth)


def _measured_thousands(text: str) -> bool:
    r"""`1,250 dollars`, `\$ 1,250`, `-1,250x`: every comma groups digits."""
    return _COMMA_GROUP.sub("", text).count(",") == 0


def _list(text: str, pieces: list[str], depth: int) -> Node:
    """`n = 2, 3, 5`: the name of the first part is that of the list, unless others have names of their own."""
    parts = tuple(read(piece, depth=depth + 1) for piece in pieces[:MAX_PARTS] if piece)
    names = {part.name for part in parts} - {""}
    return Node("list", text, parts, name=names.pop() if len(names) == 1 else "")


def _union(text: str, items: int, depth: int) -> Node | None:
    pieces = split(text, _UNION)
    if len(pieces) < 2 or any(_SIGNS.search(piece) for piece in pieces[:1] if not piece.startswith(("(", "[", "\\{"))):
        return None
    return Node("union", text, tuple(read(piece, depth=depth + 1) for piece in pieces[:MAX_PARTS]))


def _relation(text: str, items: int, depth: int) -> Node | None:
    matches = list(outside(text, _SIGNS))
    if not matches:
        return None
    pieces = split(text, _SIGNS)
    signs = tuple(match.group() for match in matches)
    first = pieces[0]
    if set(signs) <= {"=", "\\in"} and len(signs) == 1 and _NAME.fullmatch(first) and pieces[1]:
        inner = read(pieces[1], depth=depth + 1)
        return (
            Node(inner.kind, text, inner.parts, inner.brackets, inner.signs, _plain_name(first), inner.measure)
            if (inner.kind != "atom")
            else Node("atom", pieces[1], name=_plain_name(first), measure=inner.measure)
        )
    if not all(pieces):
        return Node("atom", text)
    parts = tuple(_atom(piece) if not _is_compound(piece) else read(piece, depth=depth + 1) for piece in pieces)
    return Node("relation", text, parts, signs=signs)


def _is_compound(piece: str) -> bool:
    return enclosed(piece) is not None and "," in piece


def _plain_name(name: str) -> str:
    return re.sub(r"[\s\\{}]", "", name)


def _equation_printed(text: str, items: int, depth: int) -> Node | None:
    """`Eq(x, 5)`, as SymPy prints `x = 5`."""
    if not (text.startswith("Eq(") and text.endswith(")")):
        return None
    sides = split(text[3:-1], _COMMA)
    return read(" = ".join(sides), items=items, depth=depth + 1) if len(sides) == 2 else None


def _turned_brackets(text: str, items: int, depth: int) -> Node | None:
    """`]0, 1[`: an open end as some countries write it."""
    match = re.fullmatch(r"([\](\[])([^\[\](){}]+)([\[)\]])", text)
    if match is None or (match[1] != "]" and match[3] != "["):
        return None
    ends = [part.strip() for part in re.split("[,;]", match[2])]
    if len(ends) != 2 or not all(ends):
        return None
    parts = tuple(read(part, depth=depth + 1) for part in ends)
    return Node("bracket", text, parts, match[1].replace("]", "(") + match[3].replace("[", ")"))


def _bracketed(text: str, items: int, depth: int) -> Node | None:
    found = enclosed(text)
    if found is None:
        return None
    opening, inside, closing_ = found
    if opening in ("\\{", "{"):
        return _set(text, opening, inside, depth)
    commas = len(split(inside, _COMMA)) > 1 or len(split(inside, _SEMICOLON)) > 1
    if commas:
        pieces = [piece for piece in split(inside, _SEMICOLON if len(split(inside, _SEMICOLON)) > 1 else _COMMA)]
        parts = tuple(read(piece, depth=depth + 1) for piece in pieces[:MAX_PARTS] if piece)
        brackets = opening + closing_ if opening in "([" and closing_ in ")]" else "()"
        if brackets == "[]" and parts and all(p.kind == "bracket" and p.brackets == "[]" for p in parts):
            rows = tuple(Node("list", part.text, part.parts) for part in parts)
            if len({len(row.parts) for row in rows}) == 1:
                return Node("matrix", text, rows)
        return Node("bracket", text, parts, brackets)
    if opening == "(" and closing_ == ")" and inside:
        return read(inside, items=items, depth=depth + 1)
    if opening == "[" and closing_ == "]" and inside and not re.search(r"[\\^*/+]", inside):
        return Node("bracket", text, (read(inside, depth=depth + 1),), "[]")
    return None


def _set(text: str, opening: str, inside: str, depth: int) -> Node | None:
    if match := _BUILDER.fullmatch(inside):
        return read(match["rest"], depth=depth + 1)
    pieces = [piece for piece in split(inside, re.compile(r"[,;]")) if piece]
    if opening == "{" and len(pieces) < 2:
        return read(inside, depth=depth + 1) if inside else None
    return Node("set", text, tuple(read(piece, depth=depth + 1) for piece in pieces[:MAX_PARTS]))


def _matrix(text: str, items: int, depth: int) -> Node | None:
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [row for row in split(match[2], re.compile(r"\\\\(?:\[[^\]]*\])?")) if row.strip()]
    cells = [tuple(read(cell, depth=depth + 1) for cell in split(row, re.compile("&"))) for row in rows[:MAX_PARTS]]
    return Node("matrix", text, tuple(Node("list", row, parts) for row, parts in zip(rows, cells, strict=False)))


def _named_ratio(text: str, items: int, depth: int) -> Node | None:
    if match := _BASE.fullmatch(text):
        base = match["braced"] or match["bare"]
        digits = match["digits"]
        if (not digits.isalpha() or (base == "16" and len(digits) > 1)) and all(
            int(digit, 36) < int(base) for digit in digits if int(base) > 1
        ):
            return Node("base", text, name=f"{digits.lstrip('0') or '0'}_{base}")
    pieces = split(text, _RATIO)
    if 1 < len(pieces) <= 6 and all(pieces) and not _LETTERS.search(re.sub(r"\\[A-Za-z]+| to ", "", text)):
        signs = ("to",) if " to " in text else ()
        return Node("ratio", text, tuple(_atom(piece) for piece in pieces), signs=signs)
    return None


def _atom(text: str) -> Node:
    if _REALS.fullmatch(text):
        return Node("atom", r"\mathbb{R}")
    found = measure(text)
    if found is None and len(text) > 2 and _WORDS.fullmatch(text) and _LETTERS.search(text) and not _VALUE.match(text):
        return Node("words", text)
    return Node("atom", text if found is None else found.text, measure=found)


def quotient(node: Node) -> Node:
    """`3:4` as 3/4; a ratio of more than two is no number and stays what it is."""
    if node.kind != "ratio" or len(node.parts) != 2:
        return node
    one, other = (part.number for part in node.parts)
    if one and other and other.value:
        value = Number(one.value / other.value)
        return Node("atom", str(value.value), measure=Measure(str(value.value), value))
    return Node("atom", rf"\frac{{{node.parts[0].text}}}{{{node.parts[1].text}}}")


def lettered(parts: tuple[Node, ...]) -> tuple[Node, ...]:
    """`y = 2, x = 1` in the order of their letters, where those follow one another; others where they stand."""
    names = sorted(part.name for part in parts)
    follow = len(names) > 1 and all(
        len(one) == len(other) == 1 and ord(other) == ord(one) + 1 for one, other in pairwise(names)
    )
    return tuple(sorted(parts, key=lambda part: part.name)) if follow else parts
