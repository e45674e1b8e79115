"""The grader: two cleaned answers in, a verdict and the rule that decided out. Runs in the grader's child process.

Shapes first (`structure`), then atoms: numbers as they are written (`literals`), quantities (`units`), and what is left
as SymPy, by LaTeX (`latex_reader`) and by Python (`python_reader`). A text that can be read both ways is equal when one
reading agrees and the other does not contradict it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from fractions import Fraction
from typing import Any

import sympy

from solostream.envs.rewards.grading import latex_reader, python_reader
from solostream.envs.rewards.grading.limits import TooLarge
from solostream.envs.rewards.grading.literals import Number, close, number, same_clock, same_date, same_number
from solostream.envs.rewards.grading.python_reader import Unreadable
from solostream.envs.rewards.grading.real_sets import real_set, same_set
from solostream.envs.rewards.grading.rules import Rules, Verdict
from solostream.envs.rewards.grading.structure import Node, lettered, quotient, read
from solostream.envs.rewards.grading.text import clean, one_constant, same_words, without_label
from solostream.envs.rewards.grading.units import Measure, in_degrees, marked, ratio
from solostream.envs.rewards.grading.values import proportional, same

_NAME = re.compile(r"\\?[A-Za-z]{1,9}'?(?: ?_ ?\{?[A-Za-z0-9, ]+\}?)?(?: ?\([a-zA-Z, \\]{1,20}\))?")
_NO = "nothing says that they are the same"


def grade(gold: str, answer: str, rules: Rules) -> Verdict:
    """Whether `answer` is `gold`. Never raises for strange input; hangs where SymPy does."""
    gold, answer = clean(gold), clean(answer)
    if not answer or not gold:
        return Verdict(False, "an empty answer")
    if _flat(gold) == _flat(answer):
        return Verdict(True, "the same text")
    if rule := same_words(gold, answer):
        return Verdict(True, rule)
    for compare, otherwise in ((same_date, "another date, or none"), (same_clock, "another time of day, or none")):
        if (rule := compare(gold, answer)) is not None:
            return Verdict(bool(rule), rule or otherwise)
    if bare := without_label(gold, answer):
        return grade(*bare, rules)
    if (marks := marked(gold), given_marks := marked(answer)) != ([], []):
        pairs = zip(marks or [gold] * 2, given_marks or [answer] * 2, strict=True)
        verdicts = [grade(*pair, rules) for pair in pairs]
        return next((verdict for verdict in verdicts if verdict.equal), verdicts[0])
    answer = one_constant(gold, answer)
    expected = read(gold)
    given = read(answer, items=len(expected.parts))
    try:
        rule = _same(expected, given, rules)
    except TooLarge as error:
        return Verdict(False, f"refused before it was computed: {error}")
    except (RecursionError, MemoryError):
        return Verdict(False, "too large to compare")
    return Verdict(bool(rule), rule or _NO)


def _flat(text: str) -> str:
    """Without spaces, except between letters or digits, where they separate."""
    return re.sub(r"(?<![0-9A-Za-z,])\s+|\s+(?![0-9A-Za-z])|(?<=,)\s+(?!\d)|(?<=\D,)\s+", "", text)


def _same(gold: Node, answer: Node, rules: Rules) -> str | None:
    """The rule by which the two are one, else None. Raises TooLarge."""
    if gold.name and answer.name and gold.name != answer.name:
        return _same_relations(_as_relation(gold), _as_relation(answer), rules)
    if {gold.kind, answer.kind} <= {"atom", "words", "base"}:
        return _same_atoms(gold, answer, rules)
    if gold.kind == "matrix" or answer.kind == "matrix" or "Matrix" in answer.text:
        return _same_matrices(gold, answer, rules)
    if "ratio" in (gold.kind, answer.kind):
        return _same_ratios(gold, answer, rules)
    if "relation" in (gold.kind, answer.kind):
        one, other = _as_relation(gold), _as_relation(answer)
        if one.kind == other.kind == "relation" and (rule := _same_relations(one, other, rules)):
            return rule
    if rule := _same_real_sets(gold, answer):
        return rule
    if answer.kind == "relation":
        return next(filter(None, (_same(gold, part, rules) for part in _conclusions(answer, rules))), None)
    if gold.kind == "relation":
        return next(filter(None, (_same(part, answer, rules) for part in _conclusions(gold, rules))), None)
    return _same_collections(gold, answer, rules)


def _same_collections(gold: Node, answer: Node, rules: Rules) -> str | None:
    gold, answer = _printed(gold), _printed(answer)
    one, other = _parts(gold), _parts(answer)
    if one is None or other is None:
        return None
    kinds = {gold.kind, answer.kind}
    if kinds == {"bracket", "set"}:  # the set of one pair
        lone, pair = (gold, answer) if gold.kind == "set" else (answer, gold)
        if len(lone.parts) == 1 and lone.parts[0].kind == "bracket":
            return _same(lone.parts[0], pair, rules)
    if kinds == {"bracket"}:
        if gold.brackets != answer.brackets:
            return None
        return "the same, in this order" if _in_order(one, other, rules) else None
    if "bracket" in kinds:  # against a bare list; never against a set
        alone = "atom" in kinds and len(one) == len(other) == 1  # [2] is what Python prints of a list with the answer
        if not (kinds == {"bracket", "list"} or alone) or (
            gold.kind == "bracket" and gold.brackets not in ("()", "[]")
        ):
            return None
        return "the same, in this order" if _in_order(one, other, rules) else None
    if "set" in kinds:
        hollow = kinds != {"set"} and r"\emptyset" in {part.text for part in (*one, *other)}  # a set that holds it
        covered = not hollow and _covers(one, other, rules) and _covers(other, one, rules, swapped=True)
        return "the same set" if covered else None
    names = [part.name for part in (*one, *other)]
    if len({*names} - {""}) > 1 and "" in names:
        # x = 1, y = 2 against 1, 2: the letters' order says which is which, or their place
        return "the same, in this order" if _in_order(one, other, rules) else None
    return "the same list, in any order" if _matched(one, other, rules) else None


def _printed(node: Node) -> Node:
    """Collections that Python prints: `[1, 2]` is a bracket already, `FiniteSet(1, 2)` is a set."""
    if node.kind != "atom" or node.measure is not None:
        return node
    try:
        value = python_reader.read(node.text)
    except (Unreadable, TooLarge):
        return node
    if isinstance(value, sympy.FiniteSet):
        return Node("set", node.text, tuple(read(str(element)) for element in value.args))
    if isinstance(value, sympy.Tuple):
        return Node("bracket", node.text, tuple(read(str(element)) for element in value.args), "()")
    if isinstance(value, list) and not any(isinstance(element, list) for element in value):
        return Node("bracket", node.text, tuple(read(str(element)) for element in value), "[]")
    return node


def _parts(node: Node) -> tuple[Node, ...] | None:
    if node.kind in ("list", "set", "bracket", "any"):
        return tuple(_strip_name(part, node.name) for part in node.parts)
    return (node,) if node.kind in ("atom", "words", "base") else None


def _strip_name(part: Node, name: str) -> Node:
    """All parts of `n = 2, 3` have the name n."""
    if part.kind == "atom" and not part.name and name:
        return Node("atom", part.text, name=name, measure=part.measure)
    return part


def _in_order(one: tuple[Node, ...], other: tuple[Node, ...], rules: Rules) -> bool:
    one, other = lettered(one), lettered(other)
    return len(one) == len(other) and all(_same_part(a, b, rules) for a, b in zip(one, other, strict=True))


def _same_part(a: Node, b: Node, rules: Rules) -> bool:
    if a.name and b.name and a.name != b.name:
        return False
    return bool(_same(a, b, rules))


def _matched(one: tuple[Node, ...], other: tuple[Node, ...], rules: Rules) -> bool:
    left = list(other)
    for part in one:
        found = next((i for i, candidate in enumerate(left) if _same_part(part, candidate, rules)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _covers(one: tuple[Node, ...], other: tuple[Node, ...], rules: Rules, *, swapped: bool = False) -> bool:
    def same(a: Node, b: Node) -> bool:
        return _same_part(b, a, rules) if swapped else _same_part(a, b, rules)

    return all(any(same(a, b) for b in other) for a in one)


def _same_ratios(gold: Node, answer: Node, rules: Rules) -> str | None:
    if gold.kind != answer.kind:  # one is a number: of no unit
        units = any(node.measure and node.measure.unit for node in (gold, answer))
        return None if units else _same_atoms(quotient(gold), quotient(answer), rules)
    if len(gold.parts) != len(answer.parts):
        return None
    if gold.signs and answer.signs:  # `5 to 10` may be a range: nothing is reduced
        return "the same, in this order" if _in_order(gold.parts, answer.parts, rules) else None
    values = [[part.number for part in node.parts] for node in (gold, answer)]
    if all(value is not None for row in values for value in row):
        one, other = ([value.value for value in row if value] for row in values)
        crossed = all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))
        return "the same ratio" if crossed and all(one) and all(other) else None
    if len(gold.parts) == 2:
        return "the same ratio" if _same(quotient(gold), quotient(answer), rules) else None
    return "the same ratio" if _in_order(gold.parts, answer.parts, rules) else None


def _same_matrices(gold: Node, answer: Node, rules: Rules) -> str | None:
    one, other = _cells(gold), _cells(answer)
    if one is None or other is None or [len(row) for row in one] != [len(row) for row in other]:
        return None
    pairs = zip((cell for row in one for cell in row), (cell for row in other for cell in row), strict=True)
    return "the same matrix" if all(_same(a, b, rules) for a, b in pairs) else None


def _cells(node: Node) -> list[tuple[Node, ...]] | None:
    if node.kind == "matrix":
        return [row.parts for row in node.parts]
    if node.kind == "bracket" and node.brackets == "()":  # a column vector
        return [(part,) for part in node.parts]
    try:
        value = python_reader.read(node.text)
    except (Unreadable, TooLarge):
        return None
    if isinstance(value, list) and value and all(isinstance(row, list) for row in value):
        return [tuple(read(str(cell)) for cell in row) for row in value]
    if isinstance(value, sympy.MatrixBase):
        return [tuple(read(str(cell)) for cell in row) for row in value.tolist()]
    return None


def _same_relations(gold: Node, answer: Node, rules: Rules) -> str | None:
    """Equations and inequalities: the same up to a factor that keeps the sign."""
    if {gold.kind, answer.kind} != {"relation"} or len(gold.signs) != 1 or len(answer.signs) != 1:
        return None
    one, other = _difference(gold), _difference(answer)
    if one is None or other is None:
        return None
    flipped = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    sign, given = gold.signs[0], answer.signs[0]
    if sign == given == "=" or sign == given == r"\ne":
        return "the same equation" if proportional(one, other) else None
    if sign == given and proportional(one, other, positive=True):
        return "the same inequality"
    return "the same inequality" if flipped.get(sign) == given and proportional(one, -other, positive=True) else None


def _difference(node: Node) -> Any | None:
    sides = []
    for part in node.parts:
        found = readings(part.text)
        if not found:
            return None
        sides.append(found[0])
    return sides[0] - sides[1]


def _same_real_sets(gold: Node, answer: Node) -> str | None:
    if gold.kind == answer.kind == "bracket" and gold.brackets == answer.brackets:
        return None  # two pairs, or two intervals: their ends decide
    one, other = real_set(gold), real_set(answer)
    if one is None or other is None:
        return None
    if one.variable and other.variable and one.variable != other.variable:
        return None
    return "the same set of real numbers" if same_set(one.values, other.values) else None


def _as_relation(node: Node) -> Node:
    """`x = 5` is the atom 5 with the name x; here it is an equation again."""
    if node.kind != "atom" or not node.name:
        return node
    return Node(
        "relation", node.text, (Node("atom", node.name), Node("atom", node.text, measure=node.measure)), signs=("=",)
    )


def _conclusions(node: Node, rules: Rules) -> list[Node]:
    r"""What a chain of equalities says: `A = 2 * 3 = 6` is 6, `\pi \approx 3.14` either; nothing when it is false."""
    parts, signs = node.parts, node.signs
    if not signs or not set(signs) <= {"=", r"\approx"}:
        return []
    if _is_name(parts[0].text):
        parts, signs = parts[1:], signs[1:]
    for one, other, sign in zip(parts, parts[1:], signs, strict=False):
        if not _same(one, other, Rules(0.01, rules.units, rules.percent) if sign == r"\approx" else rules):
            return []
    return [parts[0], parts[-1]] if r"\approx" in node.signs else [parts[-1]]


def _is_name(text: str) -> bool:
    return text not in (r"\pi", "e", "i") and _NAME.fullmatch(text) is not None


def _same_atoms(gold: Node, answer: Node, rules: Rules) -> str | None:
    if gold.kind == "base" or answer.kind == "base":
        return _same_bases(gold, answer)
    words = [node for node in (gold, answer) if node.kind == "words"]
    if words and (len(words) == 2 or len(words[0].text) > 3):  # `xyz` against `x*y*z` may be a product
        return same_words(gold.text, answer.text)
    if gold.measure is None and gold.text == answer.text != r"\emptyset":
        return "the same text"
    one = gold.measure or Measure(gold.text, None)
    other = answer.measure or Measure(answer.text, None)
    one, other = in_degrees(one, other), in_degrees(other, one)
    return _same_quantities(one, other, rules)


def _same_bases(gold: Node, answer: Node) -> str | None:
    """Digits and base as written: a number asked for in base two is not answered in base ten. A base may be missing."""
    one, other = (
        (node.name if node.kind == "base" else node.text.lstrip("0")).partition("_") for node in (gold, answer)
    )
    if one[0] == other[0] and (one[2] == other[2] or not one[2] or not other[2]):
        return "the same digits, in the same base"
    return None


def _same_quantities(gold: Measure, answer: Measure, rules: Rules) -> str | None:
    factor = Fraction(1)
    if rules.units == "strict" and bool(gold.unit) != bool(answer.unit):
        return None
    if rules.units != "ignore" and gold.unit and answer.unit:
        found = ratio(gold.unit, answer.unit)
        if found is None:
            return None
        factor = found
    for scale, said in _percents(gold, answer, rules):
        if rule := _same_values(gold, answer, factor * scale, rules):
            notes = [said] if said else []
            if gold.unit != answer.unit:
                notes.append("units converted" if factor != 1 else "a unit is left out")
            return ", ".join([rule, *notes])
    return None


def _percents(gold: Measure, answer: Measure, rules: Rules) -> list[tuple[Fraction, str]]:
    """By what the answer may be multiplied because of percent signs, and why."""
    hundredth = Fraction(1, 100)
    if gold.percent == answer.percent or rules.percent == "ignore":
        return [(Fraction(1), "")]
    strict = [(hundredth if answer.percent else 1 / hundredth, "percent as hundredths")]
    return strict if rules.percent == "strict" else [(Fraction(1), "percent sign left out"), *strict]


def _same_values(gold: Measure, answer: Measure, factor: Fraction, rules: Rules) -> str | None:
    one, other = gold.number, answer.number
    if one is not None and other is not None:
        scaled = other if factor == 1 else Number(other.value * factor)
        if rule := same_number(one, scaled):
            return rule
        if rules.tolerance and close(one.value, scaled.value, rules.tolerance):
            return f"within the tolerance of {rules.tolerance:g}"
        return None
    return _same_expressions(gold, answer, factor, rules)


def _same_expressions(gold: Measure, answer: Measure, factor: Fraction, rules: Rules) -> str | None:
    expected, given = _readings(gold), _readings(answer)
    if not expected or not given:
        return None
    decimal = next((m.number for m in (answer, gold) if m.number is not None and m.number.digits), None)
    floats = any(re.search(r"\d\.\d{11,}", m.text) and m.number is None for m in (gold, answer))
    scale = sympy.Rational(factor.numerator, factor.denominator)
    agreed: str | None = None
    for language, alternatives in given.items():
        rule = None
        for value in alternatives:
            for candidate in (candidate for values in expected.values() for candidate in values):
                rule = rule or same(
                    candidate, value * scale if factor != 1 else value, rules=rules, decimal=decimal, floats=floats
                )
        if rule is None:
            return None  # one reading contradicts
        agreed = agreed or f"{rule} ({language})"
    return agreed


def _readings(measured: Measure) -> dict[str, list[Any]]:
    if measured.number is not None:
        value = measured.number.value
        return {"number": [sympy.Rational(value.numerator, value.denominator)]}
    return by_language(measured.text)


def by_language(text: str) -> dict[str, list[Any]]:
    """What `text` means as LaTeX and as Python; a language that cannot read it is missing. Raises TooLarge."""
    found: dict[str, list[Any]] = {}
    with suppress(Unreadable):
        found["LaTeX"] = latex_reader.read(text)
    with suppress(Unreadable):
        value = python_reader.read(text)
        if isinstance(value, sympy.Expr):
            found["Python"] = [value]
    return found


def readings(text: str) -> list[Any]:
    """All of them, a plain number first."""
    if (written := number(text)) is not None:
        return [sympy.Rational(written.value.numerator, written.value.denominator)]
    return [value for values in by_language(text).values() for value in values]
