r"""Numbers as they are written: exact values, and how many digits were given. No SymPy, nothing that can take long.

A decimal with at least six places and six significant digits counts as the value it rounds (or is cut from): 0.785398
is π/4, 1.41421 is not √2. That is what math-verify's six places mean, without its absolute scale, by which all numbers
under a millionth are equal. What Python prints of a number that has an end (0.30000000000000004) is that number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

PLACES = 6  # and significant digits, from which on a decimal may stand for what it rounds
NOISE_DIGITS = 15  # significant digits of a double
NOISE = Fraction(1, 10**14)  # relative; of a double after some sums
_LARGEST = 5_000  # digits and exponents beyond are left to nobody: not a number

_DIGITS = r"\d{1,2000}"
_GROUPED = r"\d{1,3}(?:[, ]\d{3}){1,40}"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>{_GROUPED}|{_DIGITS})(?:\.(?P<places>\d{{0,2000}}))?|\.(?P<only>{_DIGITS}))"
    r"(?:[eE](?P<exponent>[+-]?\d{1,5}))?",
    re.ASCII,
)
_UNDERSCORED = re.compile(r"[+-]?\d{1,3}(?:_\d{3})+", re.ASCII)
_POWER_OF_TEN = re.compile(
    r"(?P<factor>[+-]?[\d., ]{1,400}?) ?(?:\\times|\\cdot|\*|x(?= ?10)) ?10 ?(?:\^|\*\*) ?"
    r"(?P<exponent>[+-]?\d{1,5}|\{ ?[+-]?\d{1,5} ?\}|\( ?[+-]?\d{1,5} ?\))",
    re.ASCII,
)
_RATIO = re.compile(
    rf"(?P<sign>[+-]?) ?(?:\\frac\{{ ?(?P<a>[+-]?{_DIGITS}) ?\}}\{{ ?(?P<b>[+-]?{_DIGITS}) ?\}}"
    rf"|(?P<c>{_DIGITS}) ?/ ?(?P<d>[+-]?{_DIGITS}))",
    re.ASCII,
)
_MIXED = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<whole>{_DIGITS})(?: ?\\frac\{{(?P<a>{_DIGITS})\}}\{{(?P<b>{_DIGITS})\}}"
    rf"| (?:and )?(?P<c>{_DIGITS}) ?/ ?(?P<d>{_DIGITS}))",
    re.ASCII,
)
_PERIODIC = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d{1,400})\.(?P<head>\d{0,400})"
    r"(?:\\overline ?\{(?P<bar>\d{1,400})\}|\\dot ?\{?(?P<dot>\d)\}?|\((?P<round>\d{1,400})\))",
    re.ASCII,
)


_DATE = re.compile(r"(\d{4})([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{4}", re.ASCII)
_MONTHS = "janfebmaraprmayjunjulaugsepoctnovdec"
_MONTH = (
    r"(?P<month%d>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE_IN_WORDS = re.compile(
    rf"(?:the )?(?:{_MONTH % 1} (?P<day1>\d{{1,2}})(?:st|nd|rd|th)?"
    rf"|(?P<day2>\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{_MONTH % 2})(?:,? (?P<year>\d{{4}}))?",
    re.ASCII | re.IGNORECASE,
)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2})(?::(\d{2}))?)? ?([ap]m)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value and its writing: `places` after the point and `digits` that count; both 0 without a point."""

    value: Fraction
    places: int = 0
    digits: int = 0


def number(text: str) -> Number | None:
    """`text`, cleaned, as one number: plain, grouped by thousands, scientific, a fraction, mixed, or periodic."""
    text = text.strip()
    if match := _NUMBER.fullmatch(text):
        return _plain(match)
    if _UNDERSCORED.fullmatch(text):
        return Number(Fraction(text.replace("_", "")))
    if match := _POWER_OF_TEN.fullmatch(text):
        factor, exponent = number(match["factor"]), int(match["exponent"].strip("{}() "))
        if factor is None or abs(exponent) > _LARGEST:
            return None
        return Number(factor.value * Fraction(10) ** exponent, max(0, factor.places - exponent), factor.digits)
    if match := _RATIO.fullmatch(text):
        top, bottom = int(match["a"] or match["c"]), int(match["b"] or match["d"])
        return Number(Fraction(-top if match["sign"] == "-" else top, bottom)) if bottom else None
    if match := _MIXED.fullmatch(text):
        return _mixed(match)
    if match := _PERIODIC.fullmatch(text):
        return _periodic(match)
    return None


def _plain(match: re.Match[str]) -> Number | None:
    whole = re.sub(r"[, ]", "", match["whole"] or "0")
    places = match["places"] or match["only"] or ""
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > _LARGEST:
        return None
    value = Fraction(int(whole + places) * (-1 if match["sign"] == "-" else 1)) * Fraction(10) ** (
        exponent - len(places)
    )
    pointed = match["places"] is not None or match["only"] is not None or exponent < 0
    digits = len((whole + places).lstrip("0")) if pointed else 0
    return Number(value, max(0, len(places) - exponent) if pointed else 0, digits)


def _mixed(match: re.Match[str]) -> Number | None:
    r"""`2 1/2`, `2\frac12`: a whole number and a proper fraction. `2 5/2` is no number."""
    top, bottom = int(match["a"] or match["c"]), int(match["b"] or match["d"])
    if not 0 < top < bottom:
        return None
    value = int(match["whole"]) + Fraction(top, bottom)
    return Number(-value if match["sign"] == "-" else value)


def _periodic(match: re.Match[str]) -> Number:
    head, period = match["head"], match["bar"] or match["dot"] or match["round"]
    value = Fraction(int(match["whole"] + head), 10 ** len(head))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(head))
    return Number(-value if match["sign"] == "-" else value)


def same_date(gold: str, answer: str) -> str | None:
    """The rule by which two dates in digits are one, "" where they are not; None: neither is a date.

    What is expected decides: 2024-1-5 may be left for 2018, `2024-01-05` never.
    """
    expected, given = _date(gold), _date(answer)
    if expected is None:
        return "" if given and re.search(r"\b0\d\b", answer) else None
    return "the same date" if expected == given else ""


def _date(text: str) -> tuple[int, ...] | None:
    """The numbers of a date, in digits or with a month's name, year first (0: none); None: it is none."""
    if match := _DATE_IN_WORDS.fullmatch(text):
        month = _MONTHS.index((match["month1"] or match["month2"])[:3].lower()) // 3 + 1
        return int(match["year"] or 0), month, int(match["day1"] or match["day2"])
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    numbers = [int(piece) for piece in re.split("[-/.]", text)]
    if match[1]:
        return tuple(numbers)
    # Which is day and which month nothing says, unless one is over twelve: else they stay as they are written.
    first, second, year = numbers
    return (year, second, first) if first > 12 else (year, first, second)


def same_clock(gold: str, answer: str) -> str | None:
    """The rule by which two times of day are one, "" where they are not; None: they need not be times of day.

    `10:30` is a time or a ratio: beside another such it is a time, so that 5:15 is not the same.
    """
    one, other = _clock(gold), _clock(answer)
    if one is None or other is None or ":" not in gold + answer:
        certain = any(clock and re.search(r":0|:.*m$", text) for clock, text in ((one, gold), (other, answer)))
        return "" if certain and not (one and other) else None
    (when, half), (given, other_half) = one, other
    if half and other_half:
        return "the same time" if when == given and half == other_half else ""
    if half or other_half:  # one says which half of the day, the other may be of 24 hours
        named, plain, which = (when, given, half) if half else (given, when, other_half)
        hours = named[0] % 12 + 12 * (which == "pm")
        return "the same time" if plain in (named, (hours, *named[1:])) else ""
    return "the same time" if when == given else ""


def _clock(text: str) -> tuple[tuple[int, int, int], str] | None:
    """((hour, minute, second), "am", "pm" or ""). `2:10:15` without a zero before a digit is a ratio of three."""
    match = _CLOCK.fullmatch(text)
    if match is None or (match[3] and not re.search(r"(?:^|:)0", text)):
        return None
    time = (int(match[1]), int(match[2] or 0), int(match[3] or 0))
    fits = 1 <= time[0] <= 12 if match[4] else (0 if match[2] else 1) <= time[0] <= 24
    return (time, match[4] or "") if fits and max(time[1:]) < 60 else None


def same_number(one: Number, other: Number) -> str | None:
    """The rule by which two written numbers are one; None: they are not."""
    if one.value == other.value:
        return "the same number"
    if rounds_to(one, other.value) or rounds_to(other, one.value):
        return "a decimal rounded at six places or more"
    return None


def rounds_to(written: Number, value: Fraction) -> bool:
    """Whether `written` is `value` rounded or cut at its last place, or the double that stands for it."""
    # a whole number needs one digit more (999999999999999 is one of its own), unless only a double is written like this
    needed = NOISE_DIGITS + (value.denominator == 1 and written.places > 0)
    if written.digits >= needed and abs(written.value - value) <= abs(value) * NOISE:
        return True
    if written.places < PLACES or written.digits < PLACES:
        return False
    error, unit = abs(written.value - value), Fraction(1, 10**written.places)
    cut = error < unit and abs(written.value) <= abs(value) and written.value * value > 0
    return cut or 2 * error <= unit


def close(one: Fraction, other: Fraction, tolerance: float) -> bool:
    """Whether they differ by at most `tolerance` of the first."""
    return abs(one - other) <= Fraction(tolerance) * abs(one)
