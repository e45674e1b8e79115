"""What Python and SymPy print, as SymPy: `x**2 + 1`, `Rational(3, 4)`, `Matrix([[1, 2]])`, `np.float64(42.0)`.

The text is a model's. It is parsed by `ast`, and only the nodes and names below are turned into SymPy objects; nothing
of it is ever executed (SymPy's own `parse_expr` would: it is built on `eval`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import sympy

from solostream.envs.rewards.grading.limits import FACTORIAL, TooLarge, check_power
from solostream.envs.rewards.grading.literals import number


class Unreadable(Exception):
    """Not written in this language."""


def _integer_only(function: Any) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        if any(argument.is_number and abs(argument) > FACTORIAL for argument in args):
            raise TooLarge("a function of a large number")
        return function(*args)

    return call


CONSTANTS: dict[str, Any] = {
    "pi": sympy.pi,
    "E": sympy.E,
    "e": sympy.E,
    "I": sympy.I,
    "i": sympy.I,
    "oo": sympy.oo,
    "inf": sympy.oo,
    "Infinity": sympy.oo,
    "infinity": sympy.oo,
    "zoo": sympy.zoo,
    "tau": 2 * sympy.pi,
    "GoldenRatio": sympy.GoldenRatio,
    "EulerGamma": sympy.EulerGamma,
    "Catalan": sympy.Catalan,
    "EmptySet": sympy.EmptySet,
    "Reals": sympy.S.Reals,
    "Integers": sympy.S.Integers,
    "Naturals": sympy.S.Naturals,
    "Naturals0": sympy.S.Naturals0,
}
_SYMPY = (
    "sqrt cbrt root exp log sin cos tan cot sec csc asin acos atan acot asec acsc atan2 sinh cosh tanh asinh"
    " acosh atanh Abs sign floor ceiling re im conjugate arg gcd lcm Max Min Mod Rational Integer erf LambertW"
    " Add Mul"
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(sympy, name) for name in _SYMPY.split()},
    **{name: _integer_only(getattr(sympy, name)) for name in ("factorial", "binomial", "gamma", "fibonacci", "zeta")},
    "ln": sympy.log,
    "log2": lambda x: sympy.log(x, 2),
    "log10": lambda x: sympy.log(x, 10),
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "abs": sympy.Abs,
    "ceil": sympy.ceiling,
    "comb": _integer_only(sympy.binomial),
    "Pow": lambda base, exponent: _power(base, exponent),
    "pow": lambda base, exponent: _power(base, exponent),
    "Symbol": lambda name: name,
    "Fraction": lambda *args: args[0] / args[1] if len(args) > 1 else args[0],
    **dict.fromkeys(
        ("Float", "Decimal", "float", "int", "complex", "sympify", "S", "mpf", "UnevaluatedExpr"), lambda x: x
    ),
    **dict.fromkeys(
        [f"{kind}{bits}" for kind in ("int", "uint", "float", "complex") for bits in (8, 16, 32, 64, 128)], lambda x: x
    ),
    **dict.fromkeys(
        ("Matrix", "ImmutableMatrix", "MutableDenseMatrix", "ImmutableDenseMatrix"), lambda rows: _matrix(rows)
    ),
    **dict.fromkeys(("array", "tensor", "list", "sorted"), lambda items: items),
    **dict.fromkeys(("tuple", "Tuple"), lambda *items: sympy.Tuple(*(items[0] if len(items) == 1 else items))),
    **dict.fromkeys(("set", "frozenset"), lambda *items: sympy.FiniteSet(*(items[0] if items else ()))),
    "FiniteSet": sympy.FiniteSet,
    "Interval": sympy.Interval,
    "Interval.open": sympy.Interval.open,
    "Interval.Lopen": sympy.Interval.Lopen,
    "Interval.Ropen": sympy.Interval.Ropen,
    "Union": sympy.Union,
    "Eq": lambda left, right: sympy.Eq(left, right, evaluate=False),
    "Ne": sympy.Ne,
    "Lt": sympy.Lt,
    "Le": sympy.Le,
    "Gt": sympy.Gt,
    "Ge": sympy.Ge,
    "And": sympy.And,
    "Or": sympy.Or,
}
_MODULES = {
    "np",
    "numpy",
    "math",
    "cmath",
    "sympy",
    "sp",
    "fractions",
    "decimal",
    "S",
    "mpmath",
    "mp",
    "datetime",
    "torch",
    "jnp",
}
_GREEK_TEXT = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi rho sigma tau upsilon phi chi psi"
    " omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
)
_GREEK = set(_GREEK_TEXT.split())
_SYMBOL = re.compile(r"[A-Za-z](?:_?\d{1,3}|_[a-z])?", re.ASCII)
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: sympy.floor(a / b),
    ast.Mod: lambda a, b: sympy.Mod(a, b),
    ast.Pow: lambda a, b: _power(a, b),
    ast.BitAnd: lambda a, b: sympy.And(a, b),
    ast.BitOr: lambda a, b: sympy.Or(a, b),
}
_SIGNS: dict[type[ast.AST], Callable[[Any], Any]] = {
    ast.USub: lambda a: -a,
    ast.UAdd: lambda a: a,
    ast.Not: lambda a: sympy.Not(a),
    ast.Invert: lambda a: sympy.Not(a),
}
_COLLECTIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Tuple: lambda *elements: sympy.Tuple(*elements),
    ast.List: lambda *elements: list(elements),
    ast.Set: lambda *elements: sympy.FiniteSet(*elements),
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: lambda a, b: sympy.Lt(a, b),
    ast.LtE: lambda a, b: sympy.Le(a, b),
    ast.Gt: lambda a, b: sympy.Gt(a, b),
    ast.GtE: lambda a, b: sympy.Ge(a, b),
}


def read(text: str) -> Any:
    """SymPy for `text`: an expression, set, matrix, Tuple, or a list for `[…]`. Raises Unreadable or TooLarge."""
    source = text.replace("\\\\", "").strip()
    if (
        "#" in source
        or re.match(r"[+-]\s*[+-]", source)
        or "\\" in source
        or ("{" in source and "^{" in source.replace(" ", ""))
    ):
        raise Unreadable(text)
    source = re.sub(r"(?<![\d.A-Za-z_])0+(?=\d)", "", source.replace("^", "**"))
    try:
        tree = ast.parse(source, mode="eval")
        return _value(tree.body)
    except (
        SyntaxError,
        ValueError,
        TypeError,
        AttributeError,
        ZeroDivisionError,
        RecursionError,
        MemoryError,
    ) as error:
        raise Unreadable(text) from error


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant():
            return _constant(node.value, node)
        case ast.Name(id=name):
            return _name(name)
        case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _MODULES:
            return _name(name)
        case ast.UnaryOp(op=op, operand=operand):
            return _SIGNS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            terms = [_value(term) for term in (left, *others)]
            pairs = zip(terms, ops, terms[1:], strict=False)
            return sympy.And(*(_COMPARISONS[type(op)](a, b) for a, op, b in pairs))
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return _COLLECTIONS[type(node)](*map(_value, elements))
        case ast.Call(func=function, args=args, keywords=keywords):
            return _call(function, args, keywords)
    raise Unreadable(ast.dump(node)[:80])


def _constant(value: Any, node: ast.Constant) -> Any:
    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    if isinstance(value, int):
        return sympy.Integer(value)
    if isinstance(value, float):
        return _decimal(repr(value))
    if isinstance(value, complex):
        return _decimal(repr(value.imag)) * sympy.I
    if isinstance(value, str):  # Decimal('0.1'), float('inf'), Symbol('x')
        stripped = value.strip()
        if (written := number(stripped)) is not None:
            return _rational(written.value)
        return _name(stripped.lstrip("+-")) * (-1 if stripped.startswith("-") else 1)
    raise Unreadable(repr(node.value))


def _decimal(text: str) -> Any:
    """The rational that the digits say: 0.1 is 1/10."""
    written = number(text)
    if written is None:
        raise Unreadable(text)
    return _rational(written.value)


def _rational(value: Fraction) -> Any:
    return sympy.Rational(value.numerator, value.denominator)


def _name(name: str) -> Any:
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name in _GREEK or _SYMBOL.fullmatch(name):
        name = re.sub(r"(?<=^[A-Za-z])(?=\d)", "_", name)  # x1 is x_1
        return sympy.Symbol("lambda" if name == "lamda" else name)
    raise Unreadable(name)


def _call(function: ast.AST, args: list[ast.expr], keywords: list[ast.keyword]) -> Any:
    match function:
        case ast.Name(id=name):
            pass
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            name = f"{owner}.{name}" if owner == "Interval" else name if owner in _MODULES else ""
        case _:
            name = ""
    if name not in FUNCTIONS or any(keyword.arg != "dtype" for keyword in keywords):
        raise Unreadable(name)
    values = [_boolean(argument) if name == "Interval" else _value(argument) for argument in args]
    if name in ("Fraction", "Rational") and len(values) > 2:
        raise Unreadable(name)
    return FUNCTIONS[name](*values)


def _boolean(node: ast.expr) -> Any:
    """`Interval(0, 1, True, False)`: the last two say whether an end is open."""
    value = _value(node)
    return bool(value) if value in (sympy.true, sympy.false) else value


def _power(base: Any, exponent: Any) -> Any:
    if base.is_Rational and exponent.is_Rational:
        check_power(max(abs(base.p), base.q), exponent)
    elif base.is_number and exponent.is_number and exponent.is_Rational and abs(exponent) > 10_000:
        raise TooLarge("a power with too many digits")
    return base**exponent


def _matrix(rows: Any) -> Any:
    return sympy.Matrix(list(rows))
