"""Are two SymPy expressions the same value? Exact for rationals, sixty digits for constants, probes for variables.

Two expressions that agree to twenty-five digits at several irrational-looking points are the same function (an identity
of polynomials, roots and trigonometric functions does not hold there by chance), and one point at which they differ is
proof that they are not. That takes milliseconds where `simplify` may take minutes. Points at which one of them is not
real say nothing, unless both are complex by themselves: `log(x**2)` is `2*log(x)`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy

from solostream.envs.rewards.grading.literals import Number, rounds_to
from solostream.envs.rewards.grading.rules import Rules

DIGITS = 60  # of constants
AGREE = sympy.Float(10) ** -45  # relative
PROBE_DIGITS = 40
PROBES_AGREE = sympy.Float(10) ** -25
FLOAT_DIGITS = 12  # from which on a decimal inside an expression is a double, whose last digits are noise
FLOATS_AGREE = sympy.Float(10) ** -9
# Values of the variables: no symmetry, no small integers, either sign.
_POINTS = ("1.3718", "0.4142857", "2.7913", "-0.83172", "3.61803", "-1.92847", "0.10937", "5.2361")
_NEEDED = 3  # probes at which both have a value


def same(gold: Any, answer: Any, *, rules: Rules, decimal: Number | None = None, floats: bool = False) -> str | None:
    """The rule by which they are one, else None.

    decimal: the one of the two that was written as a decimal, which may round the other. floats: one of them holds
    doubles. Raises what SymPy raises.
    """
    if gold.has(sympy.zoo, sympy.nan) or answer.has(sympy.zoo, sympy.nan):
        return None
    if gold == answer:
        return "the same expression"
    if gold.free_symbols or answer.free_symbols:
        return _probe(gold, answer, floats)
    return _constants(gold, answer, rules, decimal, floats)


def _constants(gold: Any, answer: Any, rules: Rules, decimal: Number | None, floats: bool) -> str | None:
    gold, answer = gold.doit(), answer.doit()
    if gold == answer:
        return "the same value"
    one, other = gold.evalf(DIGITS), answer.evalf(DIGITS)
    if one.has(sympy.oo, sympy.zoo, sympy.nan) or other.has(sympy.oo, sympy.zoo, sympy.nan):
        return "infinity" if one == other else None
    if not (_number(one) and _number(other)):
        return None
    exact = gold.is_Rational and answer.is_Rational  # they would have been equal as they stand
    if not exact and _near(one, other, AGREE):
        return "the same value to 45 digits"
    if decimal is not None:
        exact = other if _near(one, sympy.Rational(decimal.value.numerator, decimal.value.denominator), AGREE) else one
        if exact.is_real and rounds_to(decimal, Fraction(str(exact))):
            return "a decimal rounded at six places or more"
    if floats and _near(one, other, FLOATS_AGREE):
        return "the same value to the precision of a double"
    if rules.tolerance and one.is_real and other.is_real and abs(one - other) <= rules.tolerance * abs(one):
        return f"within the tolerance of {rules.tolerance:g}"
    return None


def _number(value: Any) -> bool:
    return bool(value.is_number and value.is_finite is not False and not value.atoms(sympy.Function))


def _near(one: Any, other: Any, tolerance: Any) -> bool:
    difference, size = abs(one - other), max(abs(one), abs(other))
    return bool(difference <= tolerance * size)


def _probe(gold: Any, answer: Any, floats: bool = False) -> str | None:
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    agree = FLOATS_AGREE if floats else PROBES_AGREE
    complex_ = gold.has(sympy.I) or answer.has(sympy.I)
    agreed = 0
    gold, answer = gold.doit(), answer.doit()
    for start in range(len(_POINTS)):
        point = {
            symbol: sympy.Rational(_POINTS[(start + 3 * index) % len(_POINTS)]) + sympy.Rational(index, 977)
            for index, symbol in enumerate(symbols)
        }
        one, other = gold.subs(point).evalf(PROBE_DIGITS), answer.subs(point).evalf(PROBE_DIGITS)
        if not (_number(one) and _number(other)):
            continue
        if not complex_ and not (one.is_real and other.is_real):
            continue
        if not _near(one, other, agree) and max(abs(one), abs(other)) > PROBES_AGREE:
            return None
        agreed += 1
    if agreed >= _NEEDED:
        return "equal wherever they were evaluated"
    # factorials, sums to n: only whole numbers tell
    return _probe_whole(gold, answer, symbols) if agreed == 0 else None


def _probe_whole(gold: Any, answer: Any, symbols: list[Any]) -> str | None:
    for start in (3, 5, 8, 12):
        point = {symbol: sympy.Integer(start + 2 * index) for index, symbol in enumerate(symbols)}
        one, other = gold.subs(point).doit().evalf(PROBE_DIGITS), answer.subs(point).doit().evalf(PROBE_DIGITS)
        if not (_number(one) and _number(other) and _near(one, other, PROBES_AGREE)):
            return None
    return "equal for the whole numbers that were tried"


def proportional(one: Any, other: Any, *, positive: bool = False) -> bool:
    """Whether `one = c·other` for a constant c ≠ 0 (c > 0): equations with zero on the right, lines of a plane."""
    symbols = sorted(one.free_symbols, key=str)
    if one.free_symbols != other.free_symbols or not symbols:
        return False
    ratio, agreed = None, 0
    for start in range(len(_POINTS)):
        point = {
            symbol: sympy.Rational(_POINTS[(start + 3 * index) % len(_POINTS)]) + sympy.Rational(index, 977)
            for index, symbol in enumerate(symbols)
        }
        a, b = one.subs(point).evalf(PROBE_DIGITS), other.subs(point).evalf(PROBE_DIGITS)
        if not (_number(a) and _number(b) and a.is_real and b.is_real) or abs(b) < PROBES_AGREE:
            continue
        if ratio is None:
            ratio = a / b
        if abs(ratio) < PROBES_AGREE or not _near(a, ratio * b, PROBES_AGREE):
            return False
        agreed += 1
    return agreed >= _NEEDED and ratio is not None and (not positive or bool(ratio > 0))
