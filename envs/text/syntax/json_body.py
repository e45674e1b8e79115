"""JSON as models write it: raw line breaks in strings, Python literals, several objects in a row; and calls in it."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span

_MARK = {
    '"': re.compile(r'\\.|["{}\[\]]', re.DOTALL),
    "'": re.compile(r"\\.|[\"'{}\[\]]", re.DOTALL),  # a Python literal: either quote begins a string
}
_NAMES = {"true": True, "false": False, "null": None}
_RAW = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def balanced(text: str, block: Block) -> int | None:
    """One past the bracket that closes what opens at `block.body`. Goes on where the last look at `block` ended."""
    notes = block.notes
    if "marks" not in notes:
        opened = re.compile(r"[\[{\s]{0,64}[^\[{\s]").match(text, block.body)
        if opened is None and len(text) - block.body <= 64:
            return None
        notes.update(marks="'" if opened and opened.group()[-1] == "'" else '"', depth=0, quote="")
    for mark in _MARK[notes["marks"]].finditer(text, block.resume):
        block.resume = mark.end()
        symbol = mark.group()
        if symbol in "\"'":
            if notes["quote"] in ("", symbol):
                notes["quote"] = "" if notes["quote"] else symbol
        elif symbol in "{}[]" and not notes["quote"]:
            notes["depth"] += 1 if symbol in "{[" else -1
            if notes["depth"] <= 0:
                return mark.end()
    return None


def outside_strings(text: str, block: Block, closer: str) -> Span | None:
    """The first `closer` that stands in no string; the body is JSON or a Python literal."""
    notes = block.notes
    while True:
        at = text.find(closer, max(notes.get("from", 0), block.body))
        if at < 0:
            notes["from"] = max(block.body, len(text) - len(closer) + 1)
            return None
        if not in_string(text, block, at):
            return at, at + len(closer)
        notes["from"] = at + 1


def in_string(text: str, block: Block, at: int) -> bool:
    """Whether position `at` of a body is within a string. Positions must not go back."""
    notes = block.notes
    if "quotes" not in notes:
        opened = re.compile(r"\s*[\[{][\[{\s]*([^\[{\s])").match(text, block.body)
        notes.update(quotes=opened and _MARK["'" if opened[1] == "'" else '"'], quote="", seen=block.body)
    if notes["quotes"] is None:  # neither a list nor an object: no strings
        return False
    for mark in notes["quotes"].finditer(text, notes["seen"], at):
        notes["seen"] = mark.end()
        symbol = mark.group()
        if symbol in "\"'" and notes["quote"] in ("", symbol):
            notes["quote"] = "" if notes["quote"] else symbol
    return bool(notes["quote"])


def values(body: str) -> list[Any]:
    """Every value in `body`, between them white space, commas or semicolons. Raises ValueError, with the reason."""
    try:
        return [json.loads(body, strict=False)]
    except (ValueError, RecursionError) as error:
        why = f"not JSON: {error}"
    found = []
    between = re.compile(r"[\s,;]*")
    at = between.match(body).end()  # type: ignore[union-attr]
    while at < len(body):
        end = balanced(body, Block("call", at, at, at)) if body[at] in "{[" else None
        if end is None:
            raise ValueError(why)
        found.append(_value(body[at:end], why))
        at = between.match(body, end).end()  # type: ignore[union-attr]
    if not found:
        raise ValueError(why)
    return found


def _value(text: str, why: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"
            tree = ast.parse(_escaped(text), mode="eval")
        return ast.literal_eval(_Names().visit(tree))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise ValueError(why) from None


class _Names(ast.NodeTransformer):
    """JSON's words in a Python literal."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(_NAMES[node.id]), node) if node.id in _NAMES else node


def _escaped(text: str) -> str:
    """A Python literal with raw line breaks and tabs in its strings escaped."""
    pieces, quote, done = [], "", 0
    for mark in re.finditer(r"\\.|[\"'\n\r\t]", text, re.DOTALL):
        symbol = mark.group()
        if symbol in _RAW:
            if quote:
                pieces += [text[done : mark.start()], _RAW[symbol]]
                done = mark.end()
        elif symbol in "\"'" and quote in ("", symbol):
            quote = "" if quote else symbol
    return "".join(pieces) + text[done:]


def calls(body: str) -> list[Call]:
    """The calls that `body` names, in any of OpenAI's, Hermes' and Llama's shapes."""
    try:
        found = values(body)
    except ValueError as error:
        return [Call("", {"raw": body}, str(error))]
    records: list[Any] = []
    for value in found:
        if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
            value = value["tool_calls"]
        records += value if isinstance(value, list) else [value]
    return [named(record, body) for record in records] or [Call("", {"raw": body}, "no call in it")]


def named(record: Any, body: str) -> Call:
    """The call of one record."""
    if isinstance(record, dict) and isinstance(record.get("function"), dict):
        record = record["function"]
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        return Call("", {"raw": body}, 'no "name"')
    given = record.get("arguments", record.get("parameters", {}))
    return arguments(record["name"], given, body)


def arguments(name: str, given: Any, body: str) -> Call:
    """The call of `name` with what stands for its arguments: an object, or the text of one."""
    if isinstance(given, str):  # OpenAI sends the arguments as a JSON string
        try:
            (given,) = values(given)
        except ValueError as error:
            return Call("", {"raw": body}, f'"arguments" is not JSON: {error}')
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        return Call("", {"raw": body}, '"arguments" is not an object')
    try:
        json.dumps([name, given], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Call("", {"raw": body}, "a lone surrogate escape")
    except (RecursionError, TypeError, ValueError):
        return Call("", {"raw": body}, '"arguments" holds what is not JSON')
    return Call(name, given)


def written(value: Any) -> str:
    """JSON as a model would write it: on one line, in its own letters."""
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> str:
    """A value that stands between tags: text as it is, else JSON."""
    return value if isinstance(value, str) else written(value)


def looks_like_call(record: Any) -> bool:
    """Whether a JSON value has the fields of a call: a name and arguments, or OpenAI's `function`."""
    return isinstance(record, dict) and (
        "function" in record or ("name" in record and ("arguments" in record or "parameters" in record))
    )
