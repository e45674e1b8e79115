r"""What an answer says without its typesetting: one spelling for minus signs, fractions, brackets and spaces.

Nothing is evaluated here and nothing is dropped that could change the value: `clean` turns `**$\dfrac12$**` into
`\frac{1}{2}`, and leaves `2 3` two numbers. Money and degree signs are units and stay for `structure`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_LENGTH = 2_000  # characters; a longer answer is not one
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SIGNS = {
    **dict.fromkeys("−﹣－‐‑‒–—", "-"),
    **dict.fromkeys("×✕", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    **dict(zip("（），．；：＝＋｛｝［］％", "(),.;:=+{}[]%", strict=True)),
    **dict(zip("“”„‘’", '"""\'\'', strict=True)),
    **{
        "÷": "/",
        "∕": "/",
        "⁄": "/",
        "≤": r"\le ",
        "≦": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "≧": r"\ge ",
        "⩾": r"\ge ",
    },
    **{"≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ", "π": r"\pi ", "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap "},
    **{"′": "'", "″": "''"},
    **{"∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "…": r"\ldots ", "⟨": r"\langle ", "⟩": r"\rangle "},
    **{"ℝ": r"\mathbb{R}", "√": r"\sqrt ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda "},
    **{"μ": r"\mu ", "σ": r"\sigma ", "φ": r"\phi ", "ω": r"\omega ", "γ": r"\gamma ", "δ": r"\delta "},
    **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
}
_TABLE = str.maketrans(_SIGNS)
_DELIMITERS = re.compile(r"\\[()\[\]]|\$\$")
_SIZES = re.compile(r"\\(?:left|right|[bB]ig{1,2}[lrm]?|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\.?")
_NEGATIVE_SPACE = re.compile(r"\\!")
_SPACES = re.compile(r"(?:\\(?:[,;:> ]|quad(?![A-Za-z])|qquad(?![A-Za-z])|hfill(?![A-Za-z]))|~|\s)+")
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|normal|sf)?|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|mbox|hbox|fbox|boxed"
    r"|underline|emph|operatorname\*?)\s*\{"
)
_BRACKETS = (
    (r"\\lbrace(?![A-Za-z])", r"\{"),
    (r"\\rbrace(?![A-Za-z])", r"\}"),
    (r"\\l?[vV]ert(?![A-Za-z])|\\r[vV]ert(?![A-Za-z])", "|"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\leqslant(?![A-Za-z])|\\leq(?![A-Za-z])|<=", r"\\le "),
    (r"\\geqslant(?![A-Za-z])|\\geq(?![A-Za-z])|>=", r"\\ge "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
    (r"(?<![=<>!])==(?!=)", "="),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
    (r"\\(?:dots|cdots|dotsc)(?![A-Za-z])", r"\\ldots "),
    (r"\\degree(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])", r"^\\circ "),
    (r"\\colon(?![A-Za-z])", ":"),
    (r"\\mid(?![A-Za-z])", "|"),
    (r"\\lor(?![A-Za-z])|\\vee(?![A-Za-z])", " or "),
    (r"\\land(?![A-Za-z])|\\wedge(?![A-Za-z])", " and "),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\^ ?\{? ?\\prime ?\\prime ?\}?", "''"),
    (r"\^ ?\{? ?\\prime ?\}?", "'"),
    (r"\\overrightarrow(?![A-Za-z])", r"\\vec"),
    (r"\\hat ?(?:\{ ?\\?([ijk])(?:math)? ?\}|\\?([ijk])(?:math)?(?![A-Za-z]))", r" \1\2 "),  # unit vectors
)
_BRACKET_RULES = [(re.compile(pattern), spelling) for pattern, spelling in _BRACKETS]
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d|\{[^{}]*\})\s*(\d|[a-zA-Z](?![a-zA-Z])|\{[^{}]*\})")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\d+|[a-zA-Z](?![a-zA-Z]))")
_ARROW = re.compile(r"\\vec(?![A-Za-z]) ?(?:\{ ?(\\?[A-Za-z0](?:_\{?\w\}?)?) ?\}|(\w))")  # of one letter: AB is not BA
# Where vectors are multiplied the order may count, and a number is no vector: there the arrows stay.
_VECTOR_PRODUCT = re.compile(r"\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|\) ?\(|\^|\\vec ?(?:\{[^{}]*\}|\w) ?[*(]? ?\\vec")
_ORDINAL = re.compile(r"(\d+) ?\^? ?\{? ?(?:st|nd|rd|th) ?\}?", re.ASCII)
_QUOTES = ("**", "__", "``", "`", '"', "'", "*")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,\\!|, ?\\!|['’])\d{3})+(?!\d)")


def clean(text: str) -> str:
    """`text` in the grader's spelling; linear in its length."""
    text = _superscripts(text.strip()).translate(_TABLE)
    text = _unquote(text)
    # a line break of a table stays a line break: matrices are read by `structure`
    text = _DELIMITERS.sub(lambda match: _delimiter(match), text) if "\\begin" not in text else text.replace("$$", "")
    text = _THOUSANDS.sub(lambda match: re.sub(r"[^\d]", "", match.group()), text)
    text = _NEGATIVE_SPACE.sub("", _SIZES.sub("", text)).replace("{,}", ",")
    text = _unwrap(text)
    for pattern, spelling in _BRACKET_RULES:
        text = pattern.sub(spelling, text)
    text = re.sub(r"\b([aApP])\.\s?[mM]\.?(?![A-Za-z])", r"\1m", text)
    text = re.sub(r"(?<=\d)(\s?)([AP])M(?![A-Za-z])", lambda match: f"{match[1]}{match[2].lower()}m", text)
    text = _money(text)
    text = _SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _round_roots(text)
    if "\\vec" in text and not _VECTOR_PRODUCT.search(text):
        text = _ARROW.sub(lambda match: f" {match[1] or match[2]} ", text)
    text = _unquote(_trim(_SPACES.sub(" ", text.replace("\\\\", "\x00"))).replace("\x00", "\\\\"))
    return _ORDINAL.sub(r"\1", text) if _ORDINAL.fullmatch(text) else text


def _delimiter(match: re.Match[str]) -> str:
    r"""`\(` and friends are typesetting; `\\(` is a line break and a bracket."""
    before = match.string[match.start() - 1 : match.start()]
    return match.group() if before == "\\" else " "


def _superscripts(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}", text)
    return re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m.group().translate(_SUBSCRIPTS)}}}", text)


def _unquote(text: str) -> str:
    """Without bold marks, backticks and quotation marks around the whole."""
    changed = True
    while changed:
        changed = False
        text = text.strip()
        for mark in _QUOTES:
            inner = text[len(mark) : -len(mark)]
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark not in inner:
                text, changed = inner, True
    return text


def closing(text: str, start: int) -> int:
    """Where the brace that opens at `start` closes; -1: nowhere."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "\\":
            continue
        if at and text[at - 1] == "\\" and text[at] in "{}":
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at
    return -1


def _unwrap(text: str) -> str:
    r"""`\text{…}`, `\mathbf{…}`, `\boxed{…}` say nothing about the value: words get a space on either side."""
    for _ in range(200):
        match = _WRAPPER.search(text)
        if match is None:
            break
        end = closing(text, match.end() - 1)
        if end < 0:
            return text
        inner = text[match.end() : end]
        space = "" if inner.isdigit() or (len(inner) == 1 and inner.isalpha()) else " "
        text = f"{text[: match.start()]}{space}{inner}{space}{text[end + 1 :]}"
    return text


def _money(text: str) -> str:
    r"""`$…$` is typesetting, `\$5`, `$5` and `5$` are dollars. One sign for money stays: `\$`."""
    text = text.replace("\\$", "\x01")
    pieces = text.split("$")
    # in pairs they are typesetting; a single one is money
    text = ("\x01" if len(pieces) == 2 else "").join(pieces)
    return text.replace("\x01", r"\$ ")


def _round_roots(text: str) -> str:
    r"""`\sqrt(2)` for `\sqrt{2}`."""
    start = 0
    while (at := text.find("\\sqrt", start)) >= 0:
        start = at + 5
        opened = next((i for i in range(start, len(text)) if text[i] != " "), len(text))
        if opened == len(text) or text[opened] != "(":
            continue
        depth = 0
        for end in range(opened, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                text = f"{text[:start]}{{{text[opened + 1 : end]}}}{text[end + 1 :]}"
                break
    return text


_ALL_OF_NOTHING = {"emptyset", "none"}  # either says what each of the others says
_NOTHING = _ALL_OF_NOTHING | {"no solution", "does not exist", "no real solution"}
_SPELLINGS = {
    "\\emptyset": "emptyset", "\\{\\}": "emptyset", "\\{ \\}": "emptyset", "emptyset()": "emptyset",
    "set()": "emptyset", "[]": "emptyset", "{}": "emptyset", "empty set": "emptyset", "the empty set": "emptyset",
    "dne": "does not exist", "not defined": "undefined",
    "nosolution": "no solution", "impossible": "no solution",
}  # fmt: skip
_NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) |(?:the |this )?(?:equation|system|problem) has |it has )?"
    r"no (?P<real>real )?(?:solutions?|roots?|answers?)(?: exists?| in (?:the )?reals)?"
)
_CONSTANT = re.compile(r"(.+[+-] ?)c", re.DOTALL)
_LABEL = re.compile(r"\(([A-J])\) (?=\S)|([A-J])[.)] (?=[-+\d\\$])")


def same_words(gold: str, answer: str) -> str | None:
    """Words, whatever their case; choices with and without brackets; ways to say that there is nothing."""
    one, other = (_spelled(text.casefold()) for text in (gold, answer))
    if {one, other} == {"undefined", "does not exist"}:
        return "both say that there is none"
    if {one, other} <= _NOTHING and (one == other or {one, other} & _ALL_OF_NOTHING):
        return "both say that there is none"
    if len(_choice(one)) == 1 and _choice(one) == _choice(other):
        return "the same choice"
    letters = [re.sub(r"[\s.,'’!-]+", " ", text).strip() for text in (one, other)]
    if letters[0] == letters[1] and re.fullmatch(r"[^\W\d_](?:[^\W\d_]| )*", letters[0]):
        return "the same words"
    return None


def _spelled(text: str) -> str:
    if match := _NO_SOLUTION.fullmatch(text):
        return "no real solution" if match["real"] else "no solution"
    return _SPELLINGS.get(text, text)


def without_label(gold: str, answer: str) -> tuple[str, str] | None:
    """The two, where only one has the letter of a choice before its value: `(A) 12` is A and is 12, never B or 13.

    None: neither has, or both have.
    """
    labels = [_LABEL.match(text) for text in (gold, answer)]
    if bool(labels[0]) != bool(labels[1]):
        texts = [gold, answer]
        at = 0 if labels[0] else 1
        match = labels[at]
        assert match is not None
        only_letter = len(_choice(texts[1 - at].casefold())) == 1
        texts[at] = (match[1] or match[2]) if only_letter else texts[at][match.end() :]
        return texts[0], texts[1]
    return None


def one_constant(gold: str, answer: str) -> str:
    """`answer`, with the constant of integration that it calls c in the spelling of `gold`, where that is C."""
    match = _CONSTANT.fullmatch(answer)
    return f"{match[1]}C" if match and re.search(r"[+-] ?C$", gold) and "C" not in answer else answer


def _choice(text: str) -> str:
    match = re.fullmatch(r"(?:option |choice |answer )?\(? ?([a-z]) ?[).]?", text)
    return match[1] if match else text


def _trim(text: str) -> str:
    text = text.strip()
    while text and text[-1] in ".,;:!" and not text.endswith(("...", "\\!")):
        if text[-1] == "!" and len(text) > 1 and (text[-2].isdigit() or text[-2] in ")}" or len(text) == 2):
            break  # a factorial
        text = text[:-1].rstrip()
    while text.startswith(("=", ": ")):
        text = text[1:].lstrip()
    return text


# what opens and closes; `\{` and `\langle` are brackets of two or more characters
_TOKENS = re.compile(
    r"\\[{}]|\\langle(?![A-Za-z])|\\rangle(?![A-Za-z])|\\begin\{[a-z]+\*?\}|\\end\{[a-z]+\*?\}|[()\[\]{}]"
)
_OPENING = {"(", "[", "{", "\\{", "\\langle"}


def split(text: str, separators: re.Pattern[str]) -> list[str]:
    """`text` cut where `separators` match outside all brackets, the separators left out; empty pieces stay."""
    pieces, last = [], 0
    for match in outside(text, separators):
        pieces.append(text[last : match.start()].strip())
        last = match.end()
    return [*pieces, text[last:].strip()]


def outside(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Matches of `pattern` outside all brackets, and outside bars of an absolute value that hold no separator."""
    depths = bytearray(len(text) + 1)
    depth, last = 0, 0
    for match in _TOKENS.finditer(text):
        opens = match.group() in _OPENING or match.group().startswith("\\begin")
        if opens:
            depths[last : match.start()] = bytes([min(depth, 255)]) * (match.start() - last)
            depth += 1
            last = match.start()
        else:
            depths[last : match.end()] = bytes([min(depth, 255)]) * (match.end() - last)
            depth = max(0, depth - 1)
            last = match.end()
    depths[last:] = bytes([min(depth, 255)]) * (len(depths) - last)
    for match in pattern.finditer(text):
        if not depths[match.start()]:
            yield match


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) when one pair of brackets holds all of `text`; kinds may differ: `[0, 1)`."""
    first = _TOKENS.match(text)
    if first is None or first.group() not in _OPENING:
        return None
    depth = 0
    for match in _TOKENS.finditer(text):
        opens = match.group() in _OPENING or match.group().startswith("\\begin")
        depth += 1 if opens else -1
        if depth == 0:
            whole = match.end() == len(text)
            return (first.group(), text[first.end() : match.start()].strip(), match.group()) if whole else None
    return None
