"""The call parser: every syntax by hand, then properties over generated text."""

import json
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solostream import registry
from solostream.envs.text.parse import Parser, parse
from solostream.errors import UserError

ALL = tuple(registry.BUILT_IN["syntax"])
ALIKE = (
    {"hermes", "qwen_xml", "glm"},
    {"llama", "openai"},
    {"code", "retool"},
)  # one opener: only one of each at a time


def calls(text, syntax="fence", **options):
    return [(c.name, c.code, text[slice(*c.span)], c.status) for c in parse(text, syntax, **options).calls]


# (syntax, text, the calls: name, code, what the span covers, status)
CASES = {
    "fence": ("fence", "a\n```python\nx = 1\n```\nb", [("python", "x = 1", "```python\nx = 1\n```\n", "ok")]),
    "fence at the end": ("fence", "```py\n1\n```", [("python", "1", "```py\n1\n```", "ok")]),
    "fence with CRLF": ("fence", "```python\r\n1\r\n```\r\n", [("python", "1", "```python\r\n1\r\n```\r\n", "ok")]),
    "four ticks hold three": (
        "fence",
        "````python\nprint('''\n```\n''')\n````\n",
        [("python", "print('''\n```\n''')", "````python\nprint('''\n```\n''')\n````\n", "ok")],
    ),
    "an indented fence": ("fence", "  ```python\n  1\n  ```\n", [("python", "1", "  ```python\n  1\n  ```\n", "ok")]),
    "another language": ("fence", "```text\n1\n```\n", []),
    "output is no call": ("fence", "```output\n1\n```\n", []),
    "no language": ("fence", "```\nx = 1\n```\n", []),
    "text before the fence": ("fence", "use ```python\n1\n```\n", [("python", "1", "```python\n1\n```\n", "ok")]),
    "ticks within a line": ("fence", "use ``` to quote\n1\n```\n", []),
    "unclosed fence": ("fence", "a\n```python\nx", [("python", "x", "```python\nx", "unclosed")]),
    "closer with words": (
        "fence", "```python\n1\n``` done\n", [("python", "1\n``` done", "```python\n1\n``` done\n", "unclosed")]
    ),
    "empty fence": ("fence", "```python\n\n```\n", [("python", "", "```python\n\n```\n", "malformed")]),
    "two fences": (
        "fence",
        "```python\n1\n```\nthen\n```python\n2\n```\n",
        [("python", "1", "```python\n1\n```\n", "ok"), ("python", "2", "```python\n2\n```\n", "ok")],
    ),
    "an opener inside is content": (
        "fence",
        "```python\n1\n```python\n2\n```\n",
        [("python", "1\n```python\n2", "```python\n1\n```python\n2\n```\n", "ok")],
    ),
    "code tag": ("code", "so <code>1 + 1</code>.", [("python", "1 + 1", "<code>1 + 1</code>", "ok")]),
    "a fence in a tag": (
        "code",
        "<code>\n```python\n1\n```\n</code>",
        [("python", "1", "<code>\n```python\n1\n```\n</code>", "ok")],
    ),
    "indented code in a tag": (
        "code", "<code>\n  a\n    b\n</code>", [("python", "a\n  b", "<code>\n  a\n    b\n</code>", "ok")]
    ),
    "unclosed tag": ("code", "<code>1", [("python", "1", "<code>1", "unclosed")]),
    "nested tag": ("code", "<code>a<code>b</code>", [("python", "a<code>b", "<code>a<code>b</code>", "malformed")]),
    "the first closer wins": ("code", "<code>'</code>'</code>", [("python", "'", "<code>'</code>", "ok")]),
    "python tag": ("python", "<python>1</python>", [("python", "1", "<python>1</python>", "ok")]),
}  # fmt: skip


@pytest.mark.parametrize(("syntax", "text", "expected"), CASES.values(), ids=CASES)
def test_code(syntax, text, expected):
    assert calls(text, syntax) == expected


def hermes(record):
    return f"<tool_call>\n{record if isinstance(record, str) else json.dumps(record)}\n</tool_call>"


JSON_CASES = {
    "hermes": (hermes({"name": "f", "arguments": {"x": 1}}), [("f", {"x": 1}, "ok")]),
    "two of them": (hermes({"name": "f", "arguments": {}}) * 2, [("f", {}, "ok"), ("f", {}, "ok")]),
    "parameters": (hermes({"name": "f", "parameters": {"x": 1}}), [("f", {"x": 1}, "ok")]),
    "no arguments": (hermes({"name": "f"}), [("f", {}, "ok")]),
    "arguments as a string": (hermes({"name": "f", "arguments": '{"x": [2]}'}), [("f", {"x": [2]}, "ok")]),
    "openai": (
        json.dumps(
            {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]}
        ),
        [("f", {"x": 1}, "ok")],
    ),
    "a list of openai calls": (
        'Now:\n[\n {"name": "f", "arguments": {"s": "}]\\"{"}},\n {"name": "g", "arguments": {}}]\nok',
        [("f", {"s": '}]"{'}, "ok"), ("g", {}, "ok")],
    ),
    **{
        f"openai, keys in the order of {first}": (json.dumps({first: record[first], **record}), [("f", {"x": 1}, "ok")])
        for record in (
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x":1}'}}]},
            {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"name": "f", "arguments": {"x": 1}},
            {"name": "f", "parameters": {"x": 1}},
        )
        for first in record
    },
    "JSON that is no call": ('{"name": "Ann", "age": 3}', []),
    "a set in a formula": ("{x | x > 0}\n[1, 2]\n", []),
}


@pytest.mark.parametrize(("text", "expected"), JSON_CASES.values(), ids=JSON_CASES)
def test_json(text, expected):
    found = parse(text, ("hermes", "openai")).calls
    assert [(c.name, dict(c.arguments), c.status) for c in found] == expected


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{'name': f}", "not JSON"),
        ('{"name": "f", "arguments": {"x": 1}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"arguments": {}}', 'no "name"'),
        ('{"name": 3}', 'no "name"'),
        ("5", 'no "name"'),
        ("[]", "no call"),
        ('{"name": "f", "arguments": [1]}', "not an object"),
        ('{"name": "f", "arguments": "x = 1"}', "is not JSON"),
        ('{"name": "python", "arguments": {"code": "\\ud800"}}', "surrogate"),
    ],
)
def test_json_that_names_no_call_says_why(body, why):
    (call,) = parse(hermes(body), "hermes").calls
    assert call.status == "malformed"
    assert why in call.arguments["error"]
    assert "write <tool_call>{" in call.arguments["error"]  # and what was expected


def test_a_block_that_never_closes_is_unclosed():
    for text, syntax in (('<tool_call>{"name": "f"', "hermes"), ('{"name": "f", "arguments": {', "openai")):
        (call,) = parse(text, syntax).calls
        assert call.status == "unclosed"
        assert "not closed" in call.arguments["error"]


CODE = "```python\n1\n```\n"


@pytest.mark.parametrize(
    ("think", "text", "n_calls", "thinking"),
    [
        ("run", f"<think>\n{CODE}</think>\n{CODE}", 2, ["<think>\n" + CODE + "</think>"]),
        ("skip", f"<think>\n{CODE}</think>\n{CODE}", 1, ["<think>\n" + CODE + "</think>"]),
        ("skip", f"<think>\n{CODE}", 0, ["<think>\n" + CODE]),
        ("prefilled", f"\n{CODE}</think>\n{CODE}", 1, [f"\n{CODE}</think>"]),
        ("run", f"a</think>\n{CODE}", 1, ["a</think>"]),
        ("run", "```python\nprint('<think>')\n```\n", 1, []),
        ("prefilled-run", f"\n{CODE}</think>\n{CODE}", 2, [f"\n{CODE}</think>"]),
        ("prefilled-run", f"hm {CODE}", 1, [f"hm {CODE}"]),
        ("skip", f"the tag `<think>` {CODE}", 1, []),
        ("skip", f"the tag “<think>”.\n{CODE}", 1, []),
        ("skip", f"<think>not '</think>' {CODE}</think>\n{CODE}", 1, [f"<think>not '</think>' {CODE}</think>"]),
        ("skip", "<think>it's '</think>", 0, ["<think>it's '</think>"]),
        ("run", "[THINK]hm[/THINK] so", 0, ["[THINK]hm[/THINK]"]),
        ("run", "so <think>a <think>b</think> c", 0, ["<think>a <think>b</think>"]),
        ("run", "a</think> b <think>c</think> d</think> e", 0, ["a</think>", "<think>c</think>"]),
    ],
)
def test_thinking(think, text, n_calls, thinking):
    parsed = parse(text, think=think)
    assert len(parsed.calls) == n_calls
    assert [text[slice(*span)] for span in parsed.thinking] == thinking


def test_unknown_settings_are_named():
    with pytest.raises(UserError, match="unknown syntax 'fences'; did you mean 'fence'"):
        parse("", "fences")
    with pytest.raises(UserError, match="one of: run, skip"):
        Parser(think="maybe")


@pytest.mark.parametrize(
    ("syntax", "text", "stop"),
    [
        ("fence", "a\n```python\n1\n```\nmore", "a\n```python\n1\n```\n"),
        ("fence", "```text\n1\n```\nmore", None),
        ("fence", "```python\n1\n```", None),  # the line may go on
        ("code", "a <code>1</code> more <code>2</code>", "a <code>1</code>"),
        ("hermes", "<tool_call>{}</tool_call>...", "<tool_call>{}</tool_call>"),
        ("openai", 'x\n{"name": "f", "arguments": {}} y', 'x\n{"name": "f", "arguments": {}}'),
        ("openai", '{"parameters": {}, "name": "f"} y', '{"parameters": {}, "name": "f"}'),
        (
            "openai",
            '[ {"content": 0, "tool_calls": [{"function": {"name": "f"}}]}]',
            None,
        ),  # a list of messages is none
        (
            "openai",
            '{"content": 0, "tool_calls": [{"function": {"name": "f"}}]}',
            '{"content": 0, "tool_calls": [{"function": {"name": "f"}}]}',
        ),
        ("fence", "~~~python\nprint(1)~~~\nmore", "~~~python\nprint(1)~~~\n"),
        ("hermes", '<tool_call>{"a": "</tool_call>"}</tool_call> more', '<tool_call>{"a": "</tool_call>"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>', None),
        (
            "qwen_xml",
            "<tool_call><function=f></function></tool_call>\n",
            "<tool_call><function=f></function></tool_call>",
        ),
        ("qwen_xml", "<tool_call><function=f><parameter=a></tool_call>", None),
        ("glm", "<tool_call>f</tool_call>x", "<tool_call>f</tool_call>"),
        ("harmony", "<|channel|>x to=python<|message|>1<|call|>x", "<|channel|>x to=python<|message|>1<|call|>"),
        ("harmony", "<|channel|>final<|message|>1<|return|>", None),
        ("llama", "<|python_tag|>1<|eom_id|>x", "<|python_tag|>1<|eom_id|>"),
        ("llama", "<|python_tag|>1", None),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": "}"} x', '[TOOL_CALLS]f[ARGS]{"a": "}"}'),
        ("mistral", '[TOOL_CALLS] [{"name": "f"}] x', '[TOOL_CALLS] [{"name": "f"}]'),
        ("pythonic", '[f(a=")]")] x', '[f(a=")]")]'),
        ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>x", "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"),
    ],
)
def test_stop_position(syntax, text, stop):
    """The same position, fed at once or a character at a time, and known as soon as its last character is there."""
    assert Parser(syntax).feed(text) == (stop and len(stop))
    parser = Parser(syntax)
    first = next((i for i, char in enumerate(text, 1) if parser.feed(char) is not None), None)
    assert first == (stop and len(stop))


FRAGMENTS = (
    "```python\n,```,\n```\n,````,<code>,</code>,<python>,</python>,<tool_call>,</tool_call>,<think>,</think>,<,tool,"
    "[TOOL_CALLS],<|python_tag|>,<|eom_id|>,<|channel|>,<|message|>,analysis to=f,<|call|>,<function=f>,<parameter=a>,"
    "</parameter>,</function>,<arg_key>,<arg_value>,</arg_value>,[f(x=,)],~~~python\n,~~~\n,python,'<think>',[THINK],"
    '_call>,x = 1,\\boxed{4},é,🙂,\ud800,\r,[{"name",{"name": "f"; "arguments": {"code": "1"}},"},{,},],",\\,\n, '
)
PIECES = st.sampled_from([fragment.replace(";", ",") for fragment in FRAGMENTS.split(",")])
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=30).map("".join)
SYNTAXES = st.lists(st.sampled_from(ALL), min_size=1, unique=True).filter(
    lambda names: all(len(alike & set(names)) < 2 for alike in ALIKE)
)
THINKS = st.sampled_from(["run", "skip", "prefilled", "prefilled-run"])


@settings(max_examples=int(os.environ.get("FUZZ", "1000")), deadline=None)  # FUZZ=100000: five minutes
@example("```py <code>1</code>\n", ["fence", "code"], "run", [1] * 40)
@example("[\n\n{", ["openai"], "run", [1])
@given(TEXTS, SYNTAXES, THINKS, st.lists(st.integers(1, 7), min_size=1))
def test_any_text_in_any_pieces_parses_alike(text, syntax, think, sizes):
    whole = parse(text, syntax, think=think)
    end = 0
    for call in whole.calls:
        start, stop = call.span
        # In order; the calls of one block share its span.
        assert end <= start < stop <= len(text) or call.span == (start, end)
        end = stop
        assert call.status != "unclosed" or stop == len(text)
    parser, position, index, known = Parser(syntax, think=think), 0, 0, None
    while position < len(text):
        piece = text[position : position + sizes[index % len(sizes)]]
        position, index = position + len(piece), index + 1
        found = parser.feed(piece)
        assert known is None or found == known
        known = found
    assert parser.finish() == whole
    at_once = Parser(syntax, think=think)
    assert known == at_once.feed(text)
    if known is not None:
        closed = [call for call in whole.calls if call.status != "unclosed"]
        assert closed[0].span[1] == known


TOGETHER = [
    tuple(name for name in ALL if name not in ({"retool"} | ALIKE[0] | ALIKE[1]) - {one, other})
    for one, other in (("hermes", "llama"), ("qwen_xml", "openai"), ("glm", "openai"))
]


@pytest.mark.parametrize("names", TOGETHER, ids=["hermes", "qwen_xml", "glm"])
@pytest.mark.parametrize(
    "text",
    ["<code>" * 30_000, "```x\n" * 30_000, "{" * 100_000, "[\n" * 50_000, "<" * 100_000, "`" * 100_000,
     " " * 200_000, '{"name"' * 20_000, "<think>" * 30_000, "</think>" * 30_000, "<code>" + " " * 200_000 + "</code>",
     "```x\n" + "a```python" * 20_000, "```python\n'''" + "x```\n" * 30_000, "[TOOL_CALLS][" + " " * 100_000,
     "[TOOL_CALLS]" + "{" * 100_000, "<tool_call>" + "{}" * 50_000 + "</tool_call>",
     "<tool_call>" + "<function=f>" * 20_000,
     "<tool_call>{" + '"</tool_call>' * 20_000, "<tool_call>" + "<arg_key>" * 20_000 + "</tool_call>",
     "<|channel|>" * 20_000, "<|channel|>analysis<|message|>" * 10_000, "[f(" * 50_000, "[f(x='" + '"' * 100_000,
     "<｜tool▁calls▁begin｜>" * 10_000, "<｜DSML｜function_calls>" + '<｜DSML｜invoke name="f">' * 10_000,
     "<tool_call>" + "<parameter=a>" * 20_000 + "</tool_call>",
     "<tool_call>f" + "<arg_value>" * 20_000 + "</tool_call>",
     "```\n" + "````\n" * 30_000, "x" * 399_000 + "```", "'<think>'" * 30_000],
    ids=lambda text: text[:8].strip() or "blank",
)  # fmt: skip
def test_hostile_text_takes_linear_time(text, names):
    """Quadratic work on 400,000 characters would take minutes, beyond the suite's time limit of a test."""
    long = text * (400_000 // len(text))
    parse(long, names)
    parser = Parser(names)
    for start in range(0, len(long), 50):
        parser.feed(long[start : start + 50])
