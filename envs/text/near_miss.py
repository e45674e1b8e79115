"""The try of a turn to call a tool in a form that is none here: told to the policy, never passed over in silence."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Sequence

from solostream import registry
from solostream.envs.text.syntax import Span, syntax
from solostream.envs.types import ToolCall

# What only a try to call looks like, in no syntax of ours.
_TRIES = re.compile(
    r"""(?P<tag></?[ ]?(?:tool[ _-]?calls?|toolcall|function[ _-]?calls?|tool[ _-]?(?:code|use)|tools?|function|invoke
        |python|ipython|py|code|execute|exec|run|interpreter|code[ _-]?interpreter|antml:[a-z_]+|minimax:tool_call)
        (?:[ =:][^<>\n]{0,100})?/?>)
    |(?P<special><[|｜][^<>|｜\n]{0,40}(?:tool|python|function|DSML|call)[^<>|｜\n]{0,40}[|｜]>)
    |(?P<bracket>\[/?(?:TOOL_CALLS?|PYTHON|TOOL_REQUEST|FUNCTION_CALL|ARGS)\])
    |(?P<action>^[ \t]{0,8}(?:Action(?:[ ]Input)?|Tool[ ]?Call|Function[ ]Call)[ ]{0,4}:[ \t]{0,4}\S)
    |(?P<ticks>^[ \t>]{0,40}(?:`{1,2}|~{1,2}|'{3}|"{3})[ \t]{0,4}(?:python|py|ipython|tool_code)[\d.]{0,5}[ \t]{0,8}$)
    |(?P<inline>`{3,40}[ \t]{0,4}(?:python|py|ipython|tool_code|jupyter|pycon|repl)[\d.]{0,5}
        (?:[_-]?(?:repl|console))?(?:[ \t\r\n]|\Z))
    |(?P<json>["']name["']\s{0,8}:\s{0,8}["'][\w.-]{1,80}["']\s{0,8},\s{0,8}["'](?:arguments|parameters|args|input)["'])
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_BARE = re.compile(
    r"^[ \t>]{0,40}(`{3,40}|~{3,40})[ \t\r]{0,100}\n(.*?)^[ \t>]{0,40}\1[ \t\r]{0,100}$", re.DOTALL | re.MULTILINE
)
FirstCall = Callable[[str, str], Span | None]  # (text, syntax) -> where its first call stands
_LONGEST = 100_000  # characters of a turn that are looked at


def near_miss(text: str, names: Sequence[str], hidden: Sequence[Span], first_call: FirstCall) -> ToolCall | None:
    """A malformed call that says what was expected, where a turn without a call tried to write one.

    names: the syntaxes that count here. hidden: thoughts in which calls do not.
    """
    text = text[:_LONGEST]
    # Blanks in place of what is hidden, so that every position stays what it is in the turn.
    for start, end in hidden:
        end = min(end, len(text))
        text = text[:start] + " " * (end - start) + text[end:]
    # Whatever is told ends with how a call is written here: that is what the policy needs for its next turn.
    how = " ".join(syntax(name).how for name in names)

    # The first try in the text is the one that is told. A whole call in another syntax of ours says more than a tag
    # that no syntax has.
    found = _TRIES.search(text)
    other = _other(text, names, first_call)
    if other is not None:
        kind, span = other
        if found is None or span[0] <= found.start():
            return _told(text, span, f"this is a call of another kind ({kind}). {how}")
    if found is not None:
        tag = found.group().strip()[:60]
        return _told(text, found.span(), f"{tag!r} begins or ends no call here. {how}")

    # A block without a language is the weakest sign, and a try only where fences are what is asked for.
    if "fence" in names:
        bare = _code(text)
        if bare:
            return _told(text, bare, f"the block does not say that it is Python. {how}")
    return None


def _other(text: str, names: Sequence[str], first_call: FirstCall) -> tuple[str, Span] | None:
    """The first call in another of our syntaxes: (its syntax, its span)."""
    found: list[tuple[Span, str]] = []
    for name in registry.BUILT_IN["syntax"]:
        # To parse a turn in a dozen syntaxes takes time, and most turns show signs of none.
        possible = name not in names and any(mark in text for mark in _SIGNS[name])
        if possible:
            span = first_call(text, name)
            if span:
                found.append((span, name))
    if not found:
        return None
    # By where they stand: what the policy wrote first is what it tried.
    span, name = min(found)
    return name, span


# What a call in each syntax cannot do without: most turns need no parse.
_SIGNS = {
    "fence": ("```", "~~~"),
    "code": ("<code>",),
    "python": ("<python>",),
    "hermes": ("<tool_call>",),
    "openai": ('"', "'"),
    "qwen_xml": ("<function=",),
    "harmony": ("<|channel|>",),
    "llama": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "pythonic": ("[",),
    "deepseek": ("<｜",),
    "glm": ("<arg_key>",),
    "retool": (),
}


def _code(text: str) -> Span | None:
    """The first closed block without a language that is Python and does something."""
    for match in _BARE.finditer(text):
        # Text that Python can read may be prose of one word, or a result: a block that tries something has more.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nodes = list(ast.walk(ast.parse(match[2])))
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        acts = ast.Call | ast.Import | ast.ImportFrom | ast.FunctionDef | ast.For
        if any(isinstance(node, acts) for node in nodes):
            return match.span()
    return None


def _told(text: str, span: Span, why: str) -> ToolCall:
    """A call of no tool, whose answer to the policy is `why`."""
    # Of no tool, for nothing says surely which was meant: what stands there goes along as it is.
    start, end = span
    arguments = {"raw": text[start:end], "error": why}
    return ToolCall("", arguments, span, "malformed")
