r"""Intervals and inequalities as sets of real numbers: `x < 5` is `(-\infty, 5)`, `x \ne 1` is everything else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sympy

from solostream.envs.rewards.grading import latex_reader, python_reader
from solostream.envs.rewards.grading.literals import number
from solostream.envs.rewards.grading.python_reader import Unreadable
from solostream.envs.rewards.grading.rules import Rules
from solostream.envs.rewards.grading.structure import Node
from solostream.envs.rewards.grading.values import same


@dataclass(frozen=True, slots=True)
class RealSet:
    """`variable`: what a relation spoke of; "" for an interval."""

    values: Any
    variable: str = ""


_ALL = {r"\mathbb{R}", "R", r"\R", "Reals", r"\mathbb R"}
_WITHOUT = re.compile(r"(?P<all>\\mathbb ?\{?R\}?|R) ?(?:\\setminus|\\backslash|-|\\) ?(?P<set>\\\{.+\\\})")
_RELATIONS = {"<": sympy.Lt, ">": sympy.Gt, r"\le": sympy.Le, r"\ge": sympy.Ge, "=": sympy.Eq, r"\ne": sympy.Ne}


def real_set(node: Node) -> RealSet | None:
    """The real numbers that `node` speaks of; None when it speaks of anything else. Raises TooLarge."""
    try:
        return _real_set(node)
    except (Unreadable, NotImplementedError, TypeError, ValueError, AttributeError):
        return None


def _real_set(node: Node) -> RealSet | None:
    name = node.name
    if node.kind == "bracket" and len(node.parts) == 2:
        low, high = (_value(part) for part in node.parts)
        if (low > high) == sympy.true:  # a point, (4, -7): nobody writes the empty set like this
            return None
        return RealSet(sympy.Interval(low, high, node.brackets[0] == "(", node.brackets[1] == ")"), name)
    if node.kind == "set":
        return RealSet(sympy.FiniteSet(*(_value(part) for part in node.parts)), name)
    if node.kind in ("union", "any", "all"):
        return _joined(node)
    if node.kind == "list" and node.parts and all(part.kind in ("relation", "union") for part in node.parts):
        return _joined(node)
    if node.kind == "relation":
        return _from_relation(node)
    return _from_text(node)


def _joined(node: Node) -> RealSet | None:
    parts = [_real_set(part) for part in node.parts]
    if any(part is None for part in parts):
        return None
    names = {part.variable for part in parts if part} - {""}
    if len(names) > 1:
        return None
    join = sympy.Intersection if node.kind == "all" else sympy.Union
    return RealSet(join(*(part.values for part in parts if part)), node.name or next(iter(names), ""))


def _from_text(node: Node) -> RealSet | None:
    if node.text in _ALL:
        return RealSet(sympy.S.Reals, node.name)
    if match := _WITHOUT.fullmatch(node.text):
        points = [_rational_or_read(point) for point in re.split(r",", match["set"][2:-2])]
        return RealSet(sympy.S.Reals - sympy.FiniteSet(*points), node.name)
    if node.kind != "atom":
        return None
    value = python_reader.read(node.text)
    if isinstance(value, sympy.Set):
        return RealSet(value, node.name)
    if isinstance(value, sympy.core.relational.Relational | sympy.And | sympy.Or):
        symbols = value.free_symbols
        if len(symbols) == 1:
            symbol = next(iter(symbols))
            real = sympy.Symbol("x", real=True)
            return RealSet(value.subs(symbol, real).as_set(), str(symbol))
    return None


def _from_relation(node: Node) -> RealSet | None:
    """A chain of inequalities in one variable."""
    if not set(node.signs) <= _RELATIONS.keys() or node.signs == ("=",):
        return None
    sides = [_rational_or_read(part.text) for part in node.parts]
    symbols = {symbol for side in sides for symbol in side.free_symbols}
    if len(symbols) != 1:
        return None
    symbol = next(iter(symbols))
    real = sympy.Symbol("x", real=True)
    values = sympy.S.Reals
    for left, sign, right in zip(sides, node.signs, sides[1:], strict=False):
        relation = _RELATIONS[sign](left.subs(symbol, real), right.subs(symbol, real))
        part = (
            sympy.S.Reals
            if relation == sympy.true
            else sympy.S.EmptySet
            if relation == sympy.false
            else relation.as_set()
        )
        values = sympy.Intersection(values, part)
    return RealSet(values, str(symbol))


def _value(node: Node) -> Any:
    if node.kind != "atom" or node.name:
        raise Unreadable(node.text)
    value = _rational_or_read(node.text)
    if value.free_symbols or value.has(sympy.I, sympy.nan, sympy.zoo):
        raise Unreadable(node.text)
    return value


def _rational_or_read(text: str) -> Any:
    written = number(text)
    if written is not None:
        return sympy.Rational(written.value.numerator, written.value.denominator)
    try:
        return latex_reader.read(text)[0].doit()
    except Unreadable:
        return python_reader.read(text)


def same_set(one: Any, other: Any) -> bool:
    """Whether two unions of intervals and points have the same ends, each open or closed alike. Raises TooLarge."""
    left, right = _pieces(one), _pieces(other)
    if left is None or right is None:
        return bool(one == other)
    return len(left) == len(right) and all(
        a[1:3] == b[1:3] and _same_end(a[0], b[0]) and _same_end(a[3], b[3]) for a, b in zip(left, right, strict=True)
    )


def _same_end(one: Any, other: Any) -> bool:
    return one == other or same(one, other, rules=Rules()) is not None


def _pieces(values: Any) -> list[tuple[Any, bool, bool, Any]] | None:
    if values == sympy.S.Reals:
        values = sympy.Interval(-sympy.oo, sympy.oo)
    found: list[tuple[Any, bool, bool, Any]] = []
    for part in values.args if isinstance(values, sympy.Union) else (values,):
        if isinstance(part, sympy.Interval):
            found.append((part.start, bool(part.left_open), bool(part.right_open), part.end))
        elif isinstance(part, sympy.FiniteSet):
            found += [(point, False, False, point) for point in part.args]
        elif part != sympy.S.EmptySet:
            return None
    return sorted(found, key=lambda piece: (float(piece[0]), float(piece[3])))
