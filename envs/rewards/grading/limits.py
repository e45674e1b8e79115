"""Sizes: what would be too large to compute is refused before it is computed, in SymPy itself.

`9^{9^{9^9}}` has more digits than the world has atoms, and SymPy starts to write them down as soon as it sees the
number. `guard` puts a bound into SymPy's own evaluation of powers, factorials and binomials. Only the grader's child
process calls it: the rest of a program keeps the SymPy it knows.
"""

from __future__ import annotations

import math
from typing import Any

import sympy
from sympy.core.numbers import Integer, Rational

BITS = 200_000  # of the largest integer that is computed
FACTORIAL = 5_000
TERMS = 10_000  # of a finite sum or product
DEPTH = 40  # of brackets and functions within each other


class TooLarge(Exception):
    """The value has too many digits, or the expression too many terms."""


def guard() -> None:
    """Bound what SymPy evaluates in this process. Raises, from then on, TooLarge inside SymPy."""
    for kind in (Integer, Rational):
        _bound_power(kind)
    for function in (
        sympy.factorial,
        sympy.factorial2,
        sympy.gamma,
        sympy.subfactorial,
        sympy.binomial,
        sympy.fibonacci,
    ):
        _bound_argument(function)


def _bound_power(kind: Any) -> None:
    original = kind._eval_power

    def _eval_power(self: Any, exponent: Any) -> Any:
        if isinstance(exponent, Rational):
            check_power(max(abs(self.p), self.q), exponent)
        return original(self, exponent)

    kind._eval_power = _eval_power


def check_power(base: int, exponent: Any) -> None:
    """Raises TooLarge when `base` to `exponent` has more than BITS bits."""
    if base > 1 and abs(exponent) * (base.bit_length() - 1) > BITS:
        raise TooLarge("a power with too many digits")


def _bound_argument(function: Any) -> None:
    original = function.eval.__func__

    def eval(cls: Any, *args: Any) -> Any:
        if any(isinstance(argument, Rational | sympy.Float) and abs(argument) > FACTORIAL for argument in args):
            raise TooLarge(f"{function.__name__} of a large number")
        return original(cls, *args)

    function.eval = classmethod(eval)


def check(expression: Any) -> None:
    """Raises TooLarge for towers that stay symbols (exp of exp), long sums and deep trees; before any evaluation."""
    for part, depth in _walk(expression):
        if depth > DEPTH:
            raise TooLarge("too deep")
        if isinstance(part, sympy.Sum | sympy.Product):
            for _, low, high in part.limits if all(len(limit) == 3 for limit in part.limits) else ():
                if low.is_Integer and high.is_Integer and high - low > TERMS:
                    raise TooLarge("a sum of too many terms")
        if isinstance(part, sympy.Pow | sympy.exp | sympy.factorial) and not part.free_symbols:
            _magnitude(part)


def _walk(expression: Any, depth: int = 0) -> Any:
    yield expression, depth
    if depth <= DEPTH:
        for part in getattr(expression, "args", ()):
            yield from _walk(part, depth + 1)


def _magnitude(expression: Any) -> float:
    """An upper bound of log2 |expression|, without computing it. Raises TooLarge."""
    if expression.is_Rational:
        return float(max(abs(expression.p).bit_length(), expression.q.bit_length()))
    if expression.is_Float or expression.is_NumberSymbol or not expression.args:
        return 2.0 if not expression.is_Float else max(1.0, math.log2(abs(float(expression)) + 1))
    parts = [_magnitude(part) for part in expression.args]
    if isinstance(expression, sympy.Pow | sympy.exp):
        base, power = (2.0, parts[0]) if isinstance(expression, sympy.exp) and len(parts) == 1 else (parts[0], parts[1])
        if power > 1_000 or max(base, 1.0) * math.exp2(power) > BITS * 2:
            raise TooLarge("a power with too many digits")
        return max(base, 1.0) * math.exp2(power)
    if isinstance(expression, sympy.factorial):
        if parts[0] > math.log2(FACTORIAL) + 1:
            raise TooLarge("factorial of a large number")
        return math.exp2(parts[0]) * parts[0]
    return sum(parts) + len(parts) if isinstance(expression, sympy.Mul) else max(parts) + len(parts)
