"""Fuzz the call syntaxes: every text parses, and alike, the stop position too, at once or in pieces of any size.

    python benchmarks/fuzz_calls.py [--turns 100000] [--syntax hermes …]

Turns are made of what the syntax is made of, whole calls, halves of them and other syntaxes' tags, in random order.
Checked for each: the parse in random pieces equals the whole parse; a stop position, once told, does not change, is the
end of the first call, and is the one that the text at once tells; every prefix tells it or nothing.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # this folder: its files bear the names of the packages that they measure

import argparse
import random
import time
from collections.abc import Mapping

from solostream import registry
from solostream.envs.text.parse import Parser, Think, parse

COMMON = [
    "x = 1",
    "print(1)",
    "\n",
    "\n",
    " ",
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\\",
    ",",
    "é",
    "🙂",
    "\r",
    "\t",
]
COMMON += [
    "<think>",
    "</think>",
    "'<think>'",
    "[THINK]",
    "<",
    "\\boxed{4}",
    "```python\n1\n```\n",
    "<tool_call>",
    "\ud800",
]
TICKS = ["```", "````", "~~~", "`", "python", "python3.11", "python:a.py", "json", "    ", "> ", '"""', "'''", "# it's"]
JSON = ['{"name": "python", "arguments": {"code": "print(1)"}}', '{"name"', ': "f"', ', "arguments": {}', "'name'"]
JSON += [
    '{"name": "f", "parameters": {"x": [1, 2]}}',
    "{'name': 'f', 'arguments': {'x': True}}",
    '"code": "a\nb"',
    "null",
]
FRAGMENTS: Mapping[str, list[str]] = {
    "fence": [
        *TICKS,
        "```python\n",
        "```\n",
        "~~~python\n",
        "~~~\n",
        "```\n",
        "  ```\n",
        "x```\n",
        "```json\n",
        '"""```\n',
    ],
    "code": ["<code>", "</code>", "```python\n", "\n```", "<cod", "e>", "<interpreter>"],
    "python": ["<python>", "</python>", "```python\n", "\n```", "<pyt", "hon>"],
    "hermes": [*JSON, "<tool_call>", "</tool_call>", "</tool_", "call>", '"</tool_call>"', "'</tool_call>'"],
    "openai": [*JSON, "\n" + JSON[0], "\n[" + JSON[0], '\n{"tool_calls": [', "]}"],
    "qwen_xml": [
        "<tool_call>",
        "</tool_call>",
        "<function=python>",
        "<function=",
        "</function>",
        "<parameter=code>",
        "</parameter>",
        "<parameter=",
        ">",
        "f",
        "<param",
        "</func",
        "tion>",
    ],
    "glm": [
        "<tool_call>python",
        "</tool_call>",
        "<arg_key>code</arg_key>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<arg_",
        "f",
    ],
    "harmony": [
        "<|channel|>",
        "<|message|>",
        "<|start|>assistant",
        "<|end|>",
        "<|call|>",
        "<|return|>",
        "analysis",
        "commentary",
        "final",
        " to=functions.f ",
        " to=python code",
        "<|constrain|>json",
        "<|chan",
        "nel|>",
        *JSON[:2],
        "<|channel|>analysis<|message|>",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    ],
    "llama": ["<|python_tag|>", "<|eom_id|>", "<|eot_id|>", "<|python", "_tag|>", "f.call(x=1)", *JSON, "\n" + JSON[5]],
    "mistral": [
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "a1",
        "[TOOL_",
        "CALLS]",
        "python",
        *JSON,
        "[" + JSON[0],
        "</s>",
    ],
    "pythonic": [
        "[python(",
        'code="print(1)"',
        ")]",
        "\n[",
        "f(x=2)",
        '"""',
        "'''",
        "<|python_start|>",
        "<|python_end|>",
        "=",
    ],
    "deepseek": [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
        "function",
        "f",
        "\n```json\n",
        "\n```",
        '{"x": 1}',
        "<｜tool",
        "<｜DSML｜function_calls>",
        "</｜DSML｜function_calls>",
        '<｜DSML｜invoke name="f">',
        "</｜DSML｜invoke>",
        '<｜DSML｜parameter name="x" string="false">',
        "</｜DSML｜parameter>",
    ],
}
THINKS: tuple[Think, ...] = ("run", "skip", "prefilled", "prefilled-run")


def turn(rng: random.Random, syntax: str) -> str:
    """A text of up to 24 fragments, most of them of the syntax."""
    own = FRAGMENTS.get("code" if syntax == "retool" else syntax, [])
    return "".join(rng.choice(own if own and rng.random() < 0.7 else COMMON) for _ in range(rng.randrange(25)))


def check(rng: random.Random, text: str, syntax: str | list[str]) -> tuple[int, bool]:
    """(calls, whether there was a stop position). Raises AssertionError where two ways to parse it differ."""
    think = rng.choice(THINKS)
    whole = parse(text, syntax, think=think)
    told = Parser(syntax, think=think).feed(text)
    for most in (1, 6):  # every prefix, then pieces
        parser, position, known = Parser(syntax, think=think), 0, None
        while position < len(text):
            size = rng.randint(1, most)
            found = parser.feed(text[position : position + size])
            position += size
            assert known is None or found == known, (text, syntax, think, "the stop position moved")
            known = found
        assert known == told, (text, syntax, think, "another stop position in pieces", known, told)
        assert parser.finish() == whole, (text, syntax, think, "another parse in pieces")
    closed = [call for call in whole.calls if call.status != "unclosed"]
    assert told is None or closed[0].span[1] == told, (text, syntax, think, "the stop is not the end of the first call")
    return len(whole.calls), told is not None


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--turns", type=int, default=100_000, help="of each syntax")
    options.add_argument("--syntax", nargs="*", default=registry.names("syntax"))
    chosen = options.parse_args()
    print(f"{'syntax':12}{'turns':>10}{'calls':>10}{'stops':>10}{'seconds':>10}")
    for syntax in chosen.syntax:
        rng, calls, stops, began = random.Random(syntax), 0, 0, time.perf_counter()
        for _ in range(chosen.turns):
            found, stopped = check(rng, turn(rng, syntax), syntax)
            calls, stops = calls + found, stops + stopped
        print(f"{syntax:12}{chosen.turns:>10}{calls:>10}{stops:>10}{time.perf_counter() - began:>10.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
