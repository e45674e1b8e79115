r"""LaTeX and school notation (`2x + 3`, `3sqrt(2)`) as SymPy: by math-verify's parser, with its surprises fenced.

What the parser reads differently from a person is refused or rewritten before it sees it: a space between two numbers
(`2 3` is 5 to it), a bare word (`none` is n·o·n·e), a base (`101_2` is 101), brackets side by side as a mixed number
(`2(3)` is 5). Its floats become the rationals that their digits say; `i` and `e` are the constants.
"""

from __future__ import annotations

import re
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from solostream.envs.rewards.grading.limits import check
from solostream.envs.rewards.grading.literals import number
from solostream.envs.rewards.grading.python_reader import CONSTANTS, FUNCTIONS, Unreadable

_CONFIG = ConversionConfig(interpret_as_mixed_fractions=False, interpret_contains_as_eq=False, lowercase_symbols=False)
# names that people write without a backslash
_NAMES_TEXT = (
    "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc ln exp sqrt pi theta alpha beta gamma delta lambda mu"
    " sigma phi omega infty"
)
_NAMES = _NAMES_TEXT.split()
_NAME = re.compile(rf"(?<![A-Za-z\\])({'|'.join(_NAMES)})(?![A-Za-z])")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_PRODUCT = 3  # letters side by side that may be a product; more is a word
_SIDE_BY_SIDE = re.compile(r"[\d.)}] +(?=[\d.])|\d *\\frac *\{[^{}]*\d")
_REFUSED = re.compile(
    r"\\(?:pmod|bmod|mod|equiv|ldots|begin|end|to|rightarrow|Rightarrow|implies|quad|hline|overline|dot|ddot|prime"
    r"|approx|sim|cong|pm|mp|in|cup|cap|emptyset|mathbb|nmid|nleq|ngeq|text)(?![A-Za-z])"
    r"|\.{2,}|[?@#&;:\"'$]|\\%|%|!!|\*\*|(?<![a-zA-Z}])_|(?<![A-Za-z\\])[A-Za-z]\d|\dj(?![a-z])"
)
_LINK = re.compile(r"(?<=[\d)}]) ([A-Za-z]{2,3}) (?=[\d(\\])")  # `3 to 4`: no product of t and o
_FRACTION_OF = re.compile(r"(?<![\d.^_/{])(\d{1,50}) ?/ ?(\d{1,50}) ?(?=\\(?:pi|sqrt)(?![A-Za-z]))")


def read(text: str) -> list[Any]:
    r"""Every SymPy expression that `text`, cleaned, may mean: two where a bare `\log` stands.

    Relations, sets and tuples are not read here; `structure` takes them apart first. Raises Unreadable, TooLarge.
    """
    source = text.replace(r"\ ", " ").strip()
    if (
        not source
        or re.match(r"[+-]\s*[+-]", source)
        or _REFUSED.search(source)
        or any(map(_is_word, _words(source)))
        or any(match[1] not in _NAMES for match in _LINK.finditer(source))
    ):
        raise Unreadable(text)
    source = _NAME.sub(r"\\\1", source)
    source = re.sub(r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", source)
    source = _FRACTION_OF.sub(r"\\frac{\1}{\2}", source).replace("*", r" \cdot ")
    if _SIDE_BY_SIDE.search(re.sub(r"\\log ?_ ?(?:\{[^{}]*\}|\w)", "", source)):
        raise Unreadable(text)
    source = re.sub(r"(?<=[\d)}a-zA-Z]) ?\((?=[^()]*\))", r" \\cdot (", source) if _only_numbers(source) else source
    try:
        found = latex2sympy(source, normalization_config=None, conversion_config=_CONFIG)
    except RecursionError as error:
        raise Unreadable(text) from error
    except Exception as error:  # the parser raises a bare Exception for what it cannot read
        if type(error).__name__ == "TooLarge":
            raise
        raise Unreadable(text) from error
    if not isinstance(found, sympy.Expr):
        raise Unreadable(text)
    check(found)
    readings = [_exact(found)]
    if re.search(r"\\log(?! ?_)(?![A-Za-z])", source):  # base ten to the parser, natural to most of mathematics
        readings.append(_exact(found.replace(lambda e: e.func == sympy.log and e.args[1:] == (10,), _natural)))
    return readings


def _is_word(letters: str) -> bool:
    """Not a product of variables, nor a name that LaTeX writes with a backslash."""
    return letters not in _NAMES and (len(letters) > _PRODUCT or letters in CONSTANTS or letters in FUNCTIONS)


def _words(source: str) -> list[str]:
    return [match.group() for match in _WORD.finditer(re.sub(r"\\[A-Za-z]+", " ", source))]


def _only_numbers(source: str) -> bool:
    return re.fullmatch(r"[\d\s()+\-*/.^{}]|(?:[\d\s()+\-*/.^{}]|\\cdot|\\times)*", source) is not None


def _natural(logarithm: Any) -> Any:
    return sympy.log(logarithm.args[0])


def _quotient(logarithm: Any) -> Any:
    value, base = logarithm.args
    return sympy.log(value) / sympy.log(base)


def _exact(expression: Any) -> Any:
    """Floats as the rationals that their digits say, `i` as the imaginary unit, `e` as Euler's number."""
    floats = {f: _rational(str(f)) for f in expression.atoms(sympy.Float)}
    names = {sympy.Symbol(name): CONSTANTS[name] for name in ("i", "I", "e", "E")} | {sympy.Symbol("infty"): sympy.oo}
    names[sympy.EulerGamma] = sympy.Symbol("gamma")  # a letter like others, not Euler's constant
    bound = {limit[0] for part in expression.atoms(sympy.Sum, sympy.Product) for limit in part.limits}
    names = {symbol: value for symbol, value in names.items() if symbol not in bound}
    expression = expression.replace(lambda e: e.func == sympy.log and len(e.args) == 2, _quotient)
    return expression.xreplace({**floats, **names})


def _rational(text: str) -> Any:
    written = number(text)
    if written is None:
        raise Unreadable(text)
    return sympy.Rational(written.value.numerator, written.value.denominator)
