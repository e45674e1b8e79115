"""Llama 4, Llama 3.2 and others: a Python list of calls that starts a line, `[python(code="print(1)"), f(x=2)]`.

Llama 4 may put it between `<|python_start|>` and `<|python_end|>`, which are text here. Values are literals; nothing is
evaluated.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from typing import Any

from solostream.envs.text.syntax import Block, Call, Span, prefixes
from solostream.envs.text.syntax.json_body import arguments

_NAME = r"[A-Za-z_][\w.]{0,60}"
_MARK = re.compile(r"\\.|\"\"\"|'''|[\"'()\[\]{}\n]", re.DOTALL)


class Pythonic:
    """Calls as `[python(code="print(1)")]`."""

    name = "pythonic"
    how = 'To call a tool, write a list on a line of its own: [NAME(ARGUMENT="VALUE")].'
    opener = rf"^(?:<\|python_start\|>)?[ \t]{{0,32}}(?P<pythonic_list>\[\s{{0,32}}{_NAME}\s{{0,8}}\()"
    partial = (
        rf"^{prefixes('<|python_start|>')}"
        rf"|^(?:<\|python_start\|>)?[ \t]{{0,32}}(?:\[\s{{0,32}}(?:{_NAME}\s{{0,8}})?)?"
    )
    stops = (")]",)
    tools = True
    marks = ("[func_name1(params_name1=",)

    def enter(self, match: re.Match[str]) -> Block:
        """A call that begins with the list's bracket."""
        start = match.start("pythonic_list")
        return Block("call", start, start, start, {"depth": 0, "quote": ""})

    def end(self, text: str, block: Block, final: bool) -> Span | None:
        """The bracket that closes the list, outside strings."""
        notes = block.notes
        for mark in _MARK.finditer(text, block.resume):
            symbol = mark.group()
            if len(text) - mark.start() < 3 and symbol in "\"'" and not final:
                return None  # one quote of three, perhaps
            block.resume = mark.end()
            if symbol[0] in "\"'":
                notes["quote"] = _quote_after(notes["quote"], symbol)
            elif symbol in "([{" and not notes["quote"]:
                notes["depth"] += 1
            elif symbol in ")]}" and not notes["quote"]:
                notes["depth"] -= 1
                if notes["depth"] <= 0:
                    return mark.end(), mark.end()
        return None

    def calls(self, body: str, block: Block) -> list[Call]:
        """The calls of the list, read as Python: literals as arguments, nothing is evaluated."""
        return expression_calls(body)

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """As `Syntax.write`."""
        return f"[{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"


def _quote_after(quote: str, symbol: str) -> str:
    """What string one is in behind the quotes `symbol`. Three within a string of one end it, and are an empty one."""
    if quote:
        return "" if symbol in (quote, quote * 3) else quote
    return symbol


def expression_calls(body: str) -> list[Call]:
    """The calls in the text of a Python list of them; none where it is another list, or no Python and no try."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(_joined(body.strip()), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        named = re.search(r"\(\s*\w+\s*=(?!=)", body)
        return [Call("", {"raw": body}, f"not a list of calls: {error}")] if named else []
    items = tree.elts if isinstance(tree, ast.List) else []
    if not items or not all(isinstance(item, ast.Call) for item in items):
        return []
    if not any(item.keywords for item in items if isinstance(item, ast.Call)) and not _one_string(items):
        return []  # [f(2), f(3)]: mathematics
    return [_call(item, body) for item in items if isinstance(item, ast.Call)]


def _one_string(items: list[ast.expr]) -> bool:
    """python("print(1)"): its only argument needs no name."""
    given = [item.args for item in items if isinstance(item, ast.Call)]
    return all(len(a) == 1 and isinstance(a[0], ast.Constant) and isinstance(a[0].value, str) for a in given)


def _call(node: ast.Call, body: str) -> Call:
    name = ast.unparse(node.func)
    try:
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        positional = [ast.literal_eval(value) for value in node.args]
    except (ValueError, TypeError, MemoryError, RecursionError):
        return Call("", {"raw": body}, "an argument is no literal")
    if positional and (name != "python" or given or len(positional) > 1):
        return Call("", {"raw": body}, f"the arguments of {name} need their names: {name}(ARGUMENT=VALUE)")
    return arguments(name, {"code": positional[0]} if positional else given, body)


def _joined(body: str) -> str:
    """With raw line breaks in strings of one quote escaped."""
    pieces, quote, done = [], "", 0
    for mark in _MARK.finditer(body):
        symbol = mark.group()
        if symbol == "\n" and len(quote) == 1:
            pieces += [body[done : mark.start()], "\\n"]
            done = mark.end()
        elif symbol[0] in "\"'":
            quote = _quote_after(quote, symbol)
    return "".join(pieces) + body[done:]
