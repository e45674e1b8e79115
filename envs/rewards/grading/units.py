r"""What stands beside a number: money, percent, degrees, centimetres, apples.

A quantity is an expression before a unit, `12\text{ cm}^2`, or money before it, `\$12.50`. Units of one dimension are
converted; a word that is no known unit is its own (`5 apples`). Words that change the value (`million`) are computed,
and words that make a sentence (`10 is wrong, so 12`) leave no quantity at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from solostream.envs.rewards.grading.literals import Number, number

# dimension -> unit -> its size
_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "mm millimeter millimetre": "0.001",
        "cm centimeter centimetre": "0.01",
        "dm decimeter decimetre": "0.1",
        "m meter metre": "1",
        "km kilometer kilometre": "1000",
        "inch inche in": "0.0254",
        "ft foot feet": "0.3048",
        "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "mass": {
        "mg milligram": "0.001",
        "g gram": "1",
        "kg kilogram": "1000",
        "lb pound": "453.59237",
        "oz ounce": "28.349523125",
    },
    "time": {
        "ms millisecond": "0.001",
        "s sec second": "1",
        "min minute": "60",
        "h hr hour": "3600",
        "day": "86400",
        "week": "604800",
        "month": "2629746",
        "year yr": "31556952",
    },
    "volume": {"ml mL milliliter millilitre": "0.001", "l L liter litre": "1"},
    "angle": {"degree deg ° \\circ": "1", "arcminute arcmin": "1/60", "arcsecond arcsec": "1/3600"},
    "arc": {"radian rad": "1"},  # π/180 is no fraction: see `in_degrees`
    "money": {"$ usd dollar buck": "1", "¢ cent penny pennie": "0.01"},
    "euro": {"€ euro eur": "1"},
    "sterling": {"£ gbp": "1"},
    "yen": {"¥ yen": "1"},
    "rupee": {"₹ rupee": "1"},
}
UNITS = {
    word: (dimension, Fraction(size))
    for dimension, units in _TABLE.items()
    for words, size in units.items()
    for word in words.split()
}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_DOZEN = "dozen"
# Words after a number that say something about it, not what it counts.
_NOT_UNITS_TEXT = (
    "and or but not no is are was isn wrong so if then mod modulo times plus minus over divided squared cubed"
    " to by than least most at about approximately approx around percent half quarter third other else maybe"
    " possibly either neither only for when where because choose factorial root sqrt none true false yes"
    " solution solutions answer answers equals equal more less fewer infinity oo sin cos tan log ln exp pi e i"
    " x y z n k t first last except unless with without"
)
_NOT_UNITS = set(_NOT_UNITS_TEXT.split())
_SHORT = {"per", "of", "sq", "cu", "am", "pm"}
_MONEY = re.compile(r"(?P<sign>[+-]?) ?(?:\\\$|[$€£¥₹]|USD|US\\\$) ?(?P<rest>.+)", re.DOTALL)
_MONEY_AFTER = re.compile(r"(?P<rest>.+?) ?(?P<unit>\\\$|[$€£¥₹¢])", re.DOTALL)
_PERCENT = re.compile(r"(?P<rest>.+?) ?(?:\\?%|percentage points?|percent|per cent|pct)", re.DOTALL | re.IGNORECASE)
_DEGREES = re.compile(r"(?P<rest>.+?) ?(?:\^ ?\\circ|\\circ)(?: ?(?P<scale>[CF])(?![A-Za-z]))?", re.DOTALL)
_POWER = r"(?: ?\^ ?\{? ?-?\d ?\}?)?"
_WORD = rf"[^\W\d_]+\.?{_POWER}"
_UNIT = rf"(?:/ ?)?{_WORD}(?: ?(?:/|\\cdot|per|of|[ -]) ?{_WORD}){{0,3}}"
_NAMED = re.compile(
    rf"(?P<rest>.*?[\d)}}]|.*\\pi|.*\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}) ?(?P<unit>{_UNIT})",
    re.DOTALL,
)


_AMOUNT = r"\d[\d,]*(?:\.\d+)?"
_COMPOUND = re.compile(rf"(?:{_AMOUNT} ?(?:[A-Za-z]+\.?|\^\\circ)(?:,? and |,? |$)){{2,4}}")
_MARKED = re.compile(
    rf"(?=.*')(?:(?P<degree>{_AMOUNT}) ?\^?\\circ ?)?(?:(?P<first>{_AMOUNT}) ?'(?!') ?)?(?:(?P<second>{_AMOUNT}) ?'')?"
)


@dataclass(frozen=True, slots=True)
class Measure:
    """`text` is the number or expression, `number` its exact value where it is a plain one; unit: "" for none."""

    text: str
    number: Number | None
    unit: str = ""
    percent: bool = False


def marked(text: str) -> list[str]:
    """What `5' 6''` may say: feet and inches, minutes and seconds; behind degrees, minutes of arc. []: no marks."""
    match = _MARKED.fullmatch(text.replace('"', "''"))
    if match is None:
        return []
    words = ("arcminute", "arcsecond")
    said = []
    for first, second in (words, words) if match["degree"] else (("ft", "in"), ("min", "sec")):
        parts = ((match["degree"], "degree"), (match["first"], first), (match["second"], second))
        said.append(" ".join(f"{amount} {unit}" for amount, unit in parts if amount))
    return said


def compound(text: str) -> Measure | None:
    """`2 hours 30 minutes`, `5 ft 6 in`: amounts in ever smaller units of one dimension, each less than one before."""
    if not _COMPOUND.fullmatch(text):
        return None
    total, largest, last = Fraction(0), "", None
    dimension = ""
    for amount, word in re.findall(rf"({_AMOUNT}) ?([A-Za-z]+|\^\\circ)", text):
        unit = "min" if (word, dimension) == ("m", "time") else _singular(word.lstrip("^"))
        value = number(amount)
        if value is None or unit not in UNITS or dimension not in ("", UNITS[unit][0]):
            return None
        dimension, size = UNITS[unit]
        if last is not None and (size >= last or value.value * size >= last):
            return None
        total, largest, last = total + value.value * size, largest or unit, size
    value = Number(total / UNITS[largest][1])
    return Measure(str(value.value), value, largest)


def in_degrees(one: Measure, other: Measure) -> Measure:
    """`one`, converted where it is said to be in radians and `other` in degrees. A bare π/3 is not 60 degrees."""
    if one.unit not in ("radian", "rad") or UNITS.get(other.unit, ("",))[0] != "angle":
        return one
    return Measure(f"({one.text})*180/" + (r"\pi" if "\\" in one.text else "pi"), None, "degree")


def measure(text: str) -> Measure | None:
    """The quantity that `text` writes; None for words and for expressions without a unit that are no plain number."""
    found = number(text)
    if found is not None:
        return Measure(text, found)
    if match := _MONEY.fullmatch(text):
        unit = next((sign for sign in "€£¥₹" if sign in text[:3]), "$")
        inner = measure(match["sign"] + match["rest"])
        if inner is None:
            return Measure(match["sign"] + match["rest"], None, unit)
        if inner.unit.startswith("/"):
            return Measure(inner.text, inner.number, unit + inner.unit)
        return Measure(inner.text, inner.number, unit) if inner.unit in ("", "dollar", "usd") else None
    if match := _PERCENT.fullmatch(text):
        return Measure(match["rest"], number(match["rest"]), percent=True)
    if match := _MONEY_AFTER.fullmatch(text):
        return Measure(match["rest"], number(match["rest"]), match["unit"].strip("\\"))
    if match := _DEGREES.fullmatch(text):
        return Measure(
            match["rest"], number(match["rest"]), "degree" if not match["scale"] else f"degree {match['scale']}"
        )
    return _named(text)


def _named(text: str) -> Measure | None:
    """A number and words after it. `5x`, `2 sin` and sentences are not that."""
    match = _NAMED.fullmatch(text)
    if match is None:
        return None
    rest, unit = match["rest"].strip(), match["unit"]
    words = re.findall(r"[^\W\d_]+", unit)
    value = number(rest)
    if rest.count("(") != rest.count(")") or rest.count("{") != rest.count("}"):
        return None
    if len(words) == 1 and len(words[0]) == 1 and words[0] not in ("m", "g", "s", "h", "l", "L"):
        return None
    if len(words) == 1 and len(words[0]) == 1 and not (value is not None and match["rest"] != text[: -len(unit)]):
        return None  # `5m` is five times m; `5 m` are metres
    if any(word.lower() in _NOT_UNITS for word in words):
        return None
    if value is None and re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", rest)):
        return None
    apart = match["rest"] != text[: -len(unit)]
    if not all(
        _singular(word) in UNITS or len(word) > 3 or (len(word) == 3 and apart) or word in _SHORT for word in words
    ):
        return None  # `5ab` is a product
    return _scaled(rest, value, unit, words)


def _scaled(rest: str, value: Number | None, unit: str, words: list[str]) -> Measure | None:
    """`2 million`, `3 dozen eggs`."""
    first = words[0].lower()
    if first in _SCALES or first == _DOZEN:
        if value is None:
            return None
        factor = Fraction(12) if first == _DOZEN else Fraction(10) ** _SCALES[first]
        left = unit[len(words[0]) :].strip()
        if left.lower().rstrip("s") in _SCALES:
            return None
        return Measure(f"({rest})*{factor}", Number(value.value * factor), plain(left))
    return Measure(rest, value, plain(unit))


def plain(unit: str) -> str:
    """One spelling: singular, without dots and spaces around powers; `square inches` is `inch^2`."""
    unit = re.sub(r"[\s{}]*\^[\s{}]*(-?\d)[\s{}]*", r"^\1", unit.replace(".", "")).strip()
    unit = re.sub(r" ?(?:/|\\cdot|\bper\b) ?", lambda m: "*" if "cdot" in m.group() else "/", unit)
    for word, power in (("square", 2), ("sq", 2), ("cubic", 3), ("cu", 3)):
        unit = re.sub(rf"\b{word} ?([A-Za-z]+)", rf"\1^{power}", unit)
    return re.sub(r"[^\W\d_]+", lambda match: _singular(match.group()), unit)


def _singular(word: str) -> str:
    if word in UNITS:
        return word
    word = word.lower()
    for ending, instead in (("ies", "y"), ("xes", "x"), ("ches", "ch"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            return word.removesuffix(ending) + instead
    return {"feet": "foot", "people": "person", "children": "child", "men": "man", "women": "woman"}.get(word, word)


def ratio(gold: str, answer: str) -> Fraction | None:
    """How many of `gold` one `answer` is: 100 for metres in centimetres. 1 for the same; None for what differs."""
    if gold == answer:
        return Fraction(1)
    one, other = _size(gold), _size(answer)
    if one is None or other is None or one[0] != other[0]:
        return None
    return other[1] / one[1]


def _size(unit: str) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
    """(dimensions with their powers, size) of `km/h`, `cm^2`; None where a word is no known unit."""
    dimensions: dict[str, int] = {}
    size = Fraction(1)
    for sign, word, power in re.findall(r"([*/ ]?)([^\W\d_]+|\\circ|[$¢€£¥₹°])(?:\^(-?\d))?", unit):
        known = UNITS.get(word)
        if known is None:
            return None
        exponent = int(power or 1) * (-1 if sign == "/" else 1)
        dimensions[known[0]] = dimensions.get(known[0], 0) + exponent
        size *= known[1] ** exponent
    return tuple(sorted(dimensions.items())), size
