"""Every call syntax in the forms that models write it, and what is told of a call that failed."""

import json
from pathlib import Path

import pytest

from solostream import registry
from solostream.envs import Task, ToolEnv
from solostream.envs.text.answers import final_answer
from solostream.envs.text.parse import parse
from solostream.envs.text.syntax import detect, syntaxes
from solostream.errors import UserError

TURNS = [json.loads(line) for line in (Path(__file__).parent / "turns.jsonl").read_text().splitlines()]


def play(syntax, *turns, answer="1"):
    """The steps of an episode: (observation, reward, terminated, truncated, info) each."""
    env = ToolEnv([Task("t", "q", answer)], syntax=syntax, system_prompt="")
    env.reset()
    steps = [env.step(turn) for turn in turns]
    env.close()
    return steps


@pytest.mark.parametrize("case", [c for c in TURNS if "calls" in c], ids=lambda c: c["kind"])
def test_reported_turns(case):
    parsed = parse(case["text"], case["syntax"], think=case["think"])
    assert [(c.name, c.code, c.status) for c in parsed.calls] == [("python", code, "ok") for code in case["calls"]]
    found = final_answer(case["text"], parsed)
    assert (found and found[0]) == case["answer"]


@pytest.mark.parametrize("case", [c for c in TURNS if c["kind"].startswith("near-miss")], ids=lambda c: c["text"][:12])
def test_a_failed_try_is_told_and_the_episode_goes_on(case):
    ((observation, _, terminated, truncated, info),) = play(case["syntax"], case["text"])
    assert (terminated, truncated, info["ending"]) == (False, False, None)
    assert observation.startswith("Error: this call could not be read: ")
    assert ("<tool_call>{" if case["syntax"] == "hermes" else "```python") in observation


def test_a_thought_that_a_call_interrupted_goes_on():
    (case,) = (c for c in TURNS if "turns" in c)
    *first, last = play(case["syntax"], *case["turns"], answer="42")
    assert [step[2:4] for step in first] == [(False, False), (False, False)]
    assert [step[0] for step in first] == ["42", "42"]
    assert (last[4]["answer"], last[4]["ending"], last[1]) == (case["answer"], "answered", 1.0)
    env = ToolEnv([Task("t", "q", "42")], system_prompt="")
    for _ in range(2):  # the next episode does not begin inside
        env.reset()
        assert env.complete("<think>```python\n1\n```\n") is not None
        env.step("<think>```python\n1\n```\n")
        env.reset()
        assert env.step("\\boxed{42}")[1:3] == (1.0, True)
    env.close()


# (syntax, text, the calls: name, arguments)
FORMS = {
    "fence in a quotation": ("fence", "> ```python\n> x = 1\n> x\n> ```\n", [("python", {"code": "x = 1\nx"})]),
    "tildes hold ticks": ("fence", "~~~py\ns = '```'\n~~~\n", [("python", {"code": "s = '```'"})]),
    "attributes": ("fence", "```{.python .numberLines}\n1\n```\n", [("python", {"code": "1"})]),
    "upper case": ("fence", "```Python 3\n1\n```\n", [("python", {"code": "1"})]),
    "tool_code": ("fence", "```tool_code\n1\n```\n", [("python", {"code": "1"})]),
    "pythonica is none": ("fence", "```pythonica\n1\n```\n", []),
    "ticks that end a line of a string": (
        "fence",
        '```python\ns = """```\nx\n"""\nlen(s)\n```\n',
        [("python", {"code": 's = """```\nx\n"""\nlen(s)'})],
    ),
    "quotes in comments and strings of one line": (
        "fence",
        "```python\n# it's '''\ns = \"'''\" + '\\''\nprint(s)```\nok",
        [("python", {"code": "# it's '''\ns = \"'''\" + '\\''\nprint(s)"})],
    ),
    "a stray closer hides no call": (
        "fence",
        "done```\n```\nNow:\n```python\n2\n```\n",
        [("python", {"code": "2"})],
    ),
    "output behind text": ("fence", "It prints: ```text\nx = 1\n```\nok", []),
    "deep list": ("fence", "- a\n  - b\n        ```py\n        1\n        ```\n", [("python", {"code": "1"})]),
    "CRLF closer on the code line": ("fence", "```python\r\nprint(1)```\r\nso", [("python", {"code": "print(1)"})]),
    "words in a Python literal": (
        "hermes",
        "<tool_call>{'name': 'f', 'arguments': {'x': true, 'y': None, 'z': 'a\nb',}}</tool_call>",
        [("f", {"x": True, "y": None, "z": "a\nb"})],
    ),
    "closer in a literal's string": (
        "hermes",
        "<tool_call>{'name': 'f', 'arguments': {'s': '\"</tool_call>'}}</tool_call>",
        [("f", {"s": '"</tool_call>'})],
    ),
    "a list in a tag": (
        "hermes",
        '<tool_call>[{"name": "f"}, {"name": "g", "arguments": {"x": 1}}]</tool_call>',
        [("f", {}), ("g", {"x": 1})],
    ),
    "qwen, no wrapper": (
        "qwen_xml",
        "<function=python>\n<parameter=code>\nprint('</tool_call>')\n</parameter>\n</function>",
        [("python", {"code": "print('</tool_call>')"})],
    ),
    "qwen, closers in the value": (
        "qwen_xml",
        "<tool_call>\n<function=python>\n<parameter=code>\ns = '</function></tool_call>'\n</parameter>\n</function>\n"
        "</tool_call>",
        [("python", {"code": "s = '</function></tool_call>'"})],
    ),
    "qwen, two arguments and two calls": (
        "qwen_xml",
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n x\n\ny\n</parameter>\n</function>\n"
        "<function=g>\n</function>\n</tool_call>",
        [("f", {"a": "1", "b": " x\n\ny"}), ("g", {})],
    ),
    "qwen, a parameter without its closer": (
        "qwen_xml",
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>",
        [("f", {"a": "1"})],
    ),
    "glm": (
        "glm",
        "<tool_call>python\n<arg_key>code</arg_key>\n<arg_value>a = '</tool_call>'\nb</arg_value>\n</tool_call>",
        [("python", {"code": "a = '</tool_call>'\nb"})],
    ),
    "glm 4.7": (
        "glm",
        "<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value><arg_key>y</arg_key><arg_value>2</arg_value></tool_call>",
        [("f", {"x": "1", "y": "2"})],
    ),
    "harmony, recipient behind the role": (
        "harmony",
        '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>',
        [("f", {"x": 1})],
    ),
    "harmony, a thought and a call": (
        "harmony",
        "<|channel|>analysis<|message|>\\boxed{1}<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        '<|constrain|>json<|message|>{"x": 1}',
        [("f", {"x": 1})],
    ),
    "harmony, code for the function": (
        "harmony",
        "<|channel|>commentary to=functions.python code<|message|>print(1)<|call|>",
        [("python", {"code": "print(1)"})],
    ),
    "llama, without its end": ("llama", "<|python_tag|>a = 1\nprint(a)", [("python", {"code": "a = 1\nprint(a)"})]),
    "llama, JSON": (
        "llama",
        '{"name": "python", "parameters": {"code": "print(1)"}}',
        [("python", {"code": "print(1)"})],
    ),
    "llama, JSON behind the tag": (
        "llama",
        '<|python_tag|>{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}<|eom_id|>',
        [("f", {"x": 1}), ("g", {})],
    ),
    "llama, a dictionary is code": ("llama", "<|python_tag|>{1: 2}<|eot_id|>", [("python", {"code": "{1: 2}"})]),
    "llama, built-in": ("llama", '<|python_tag|>search.call(query="a (b)")', [("search", {"query": "a (b)"})]),
    "mistral, two in a list": (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": "}]"}}, {"name": "g", "arguments": {}}]</s>',
        [("f", {"a": "}]"}), ("g", {})],
    ),
    "mistral 11": (
        "mistral",
        '[TOOL_CALLS]python[ARGS]{"code": "x[0]"}[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}',
        [("python", {"code": "x[0]"}), ("f", {})],
    ),
    "mistral, no tags between": ("mistral", '[TOOL_CALLS]python{"code": "1"}', [("python", {"code": "1"})]),
    "pythonic, two": (
        "pythonic",
        "Now:\n[python(code='''a = [1]\nprint(a)'''), f(x=[1, {'y': -2}], z=True)]\nok",
        [("python", {"code": "a = [1]\nprint(a)"}), ("f", {"x": [1, {"y": -2}], "z": True})],
    ),
    "pythonic, brackets and line breaks in strings": (
        "pythonic",
        '[python(code="print(\\")]\\")\nx")]',
        [("python", {"code": 'print(")]")\nx'})],
    ),
    "pythonic, no name for the code": ("pythonic", "[python('1')]", [("python", {"code": "1"})]),
    "pythonic, mathematics": ("pythonic", "[f(2), g(3)]\n[sin(x) for x in y]\n[f(x) + 1]", []),
    "llama 4": ("pythonic", '<|python_start|>[f(a="b")]<|python_end|>', [("f", {"a": "b"})]),
    "deepseek v3": (
        "deepseek",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>python\n```json\n{"code": "1"}\n```'
        "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
        [("python", {"code": "1"}), ("f", {})],
    ),
    "deepseek v3.1": (
        "deepseek",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>python<｜tool▁sep｜>{"code": "1"}<｜tool▁call▁end｜>',
        [("python", {"code": "1"})],
    ),
    "deepseek v3.2": (
        "deepseek",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="s" string="true">[1]</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="n" string="false">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        [("f", {"s": "[1]", "n": [1]})],
    ),
}


@pytest.mark.parametrize(("syntax", "text", "expected"), FORMS.values(), ids=FORMS)
def test_forms(syntax, text, expected):
    found = parse(text, syntax).calls
    assert [(c.name, dict(c.arguments), c.status) for c in found] == [(*call, "ok") for call in expected]


def test_thoughts_on_harmonys_channels_hold_no_answer():
    text = "<|channel|>analysis<|message|>\\boxed{1}<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{2}"
    assert final_answer(text, parse(text, "harmony")) == ("2", text.index("\\boxed{2}"))
    still = "<|channel|>analysis<|message|>\\boxed{1}"
    assert final_answer(still, parse(still, "harmony")) is None


def test_retools_output_stands_between_its_tags():
    ((observation, *_),) = play("retool", "I check.\n<code>\n```python\nprint({15})\n```\n</code>")
    assert observation == "<interpreter>\n{15}\n</interpreter>"


class Twice:
    """A tool that wants an integer."""

    name, description = "twice", "twice n"
    parameters = dict(type="object", properties={"n": {"type": "integer"}, "s": {"type": "string"}}, required=["n"])  # noqa: RUF012

    async def __call__(self, arguments, workspace):
        return f"{arguments['n'] * 2} {arguments.get('s')!r}"


def test_values_that_are_text_in_their_syntax_get_the_types_of_the_schema():
    """GLM and Qwen write every value as text: an integer is one all the same, a string of digits stays a string."""
    env = ToolEnv([Task("t", "q", "1")], tools=["python", Twice], syntax="glm", system_prompt="")
    env.reset()
    argument = "<arg_key>{}</arg_key><arg_value>{}</arg_value>"
    call = f"<tool_call>twice{argument.format('n', '{}')}{argument.format('s', 12)}</tool_call>"
    assert env.step(call.format("21"))[0] == "42 '12'"
    assert env.step(call.format("many"))[0] == "Error: argument 'n' must be of type integer"
    assert env.step("<tool_call>python<arg_key>code</arg_key><arg_value>7</arg_value></tool_call>")[0] == "7"
    env.close()


NEAR = {
    "another syntax, unclosed": ("fence", "<tool_call>{"),
    "harmony": ("hermes", "<|channel|>commentary to=functions.python<|message|>{}<|call|>"),
    "python tag": ("hermes", "<|python_tag|>print(1)"),
    "code tag": ("fence", "<code>1</code>"),
    "a function in XML": ("hermes", "<function=python><parameter=code>1</parameter></function>"),
    "a pythonic list": ("hermes", '[python(code="1")]'),
    "JSON": ("fence", 'I call {"name": "python", "arguments": {"code": "1"}}'),
    "JSON in a fence": ("fence", '```json\n{"name": "python", "arguments": {"code": "1"}}\n```\n'),
    "no language": ("fence", "```\nimport math\nprint(math.pi)\n```\n"),
    "a console": ("fence", "```pycon\n>>> print(1)\n```\n"),
    "a loop that reads": ("fence", "```python-repl\nprint(1)\n```\n"),
    "repl": ("fence", "So:\n```repl\nprint(1)\n```\n"),
    "two ticks": ("fence", "``python\nprint(1)\n``\n"),
    "one line": ("fence", "```python print(1)```"),
    "quotes for ticks": ("fence", "'''python\nprint(1)\n'''"),
    "a closer alone": ("hermes", '{"name": "python"}</tool_call>'),
    "ReAct": ("fence", "Thought: hm\nAction: python\nAction Input: print(1)"),
    "upper case": ("code", "<CODE>print(1)</CODE>"),
    "a broken tag": ("hermes", '<toolcall>{"name": "python"}</toolcall>'),
    "another house's tag": ("hermes", '<|tool_calls_section_begin|>functions.python:0 {"code": "1"}'),
    "empty": ("fence", "```python\n```\n"),
    "unclosed": ("fence", "```python\nprint(1)"),
    "unclosed JSON": ("hermes", '<tool_call>{"name": "python", "arguments": {"code": "print(1)</tool_call>'),
    "mistral without its list": ("mistral", "[TOOL_CALLS]python print(1)"),
    "glm without a name": ("glm", "<tool_call><arg_key>code</arg_key><arg_value>1</arg_value></tool_call>"),
    "qwen with JSON": ("qwen_xml", '<tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>'),
    "hermes with XML": ("hermes", "<tool_call><function=python></function></tool_call>"),
    "pythonic without quotes": ("pythonic", "[python(code=print(1))]"),
    "deepseek without a name": ("deepseek", "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"),
    "in a thought": ("fence", "<think>I run <code>1</code>"),
}


@pytest.mark.parametrize(("syntax", "text"), NEAR.values(), ids=NEAR)
def test_a_try_to_call_is_never_silent(syntax, text):
    (call,) = parse(text, syntax).calls
    assert call.status in ("malformed", "unclosed")
    assert "write" in call.arguments["error"]
    ((observation, _, terminated, truncated, _),) = play(syntax, text)
    assert observation.startswith("Error: this call could not be read: ")
    assert (terminated, truncated) == (False, False)


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        ("fence", "I think it is 42."),
        ("fence", "The function f(x) = 2 is called even."),
        ("fence", "```\n3 1 2\n```\n"),
        ("fence", "```\nx = 1\n```\n"),
        ("fence", "```output\nprint(1)\n```\n"),
        ("fence", '{"name": "Ann", "age": 3}'),
        ("hermes", "[1, 2] and {3}"),
        ("hermes", "a < b > c, action taken"),
        ("hermes", "[f(2), f(3)]"),
        ("fence", "`python` is a language, <b>really</b>"),
    ],
)
def test_what_is_no_try(syntax, text):
    assert parse(text, syntax).calls == ()
    assert play(syntax, text)[0][4]["ending"] == "void"


def test_a_try_in_a_thought_that_is_skipped_is_none_and_an_answer_outdoes_it():
    assert parse("<think><tool_call>{}</tool_call></think> hm", think="skip").calls == ()
    env = ToolEnv([Task("t", "q", "1")], system_prompt="", reward="well_formed")
    env.reset()
    assert env.step("One could write <code>1</code>. \\boxed{1}")[1:3] == (1.0, True)
    assert env.trace[-1].calls == ()
    env.close()


def test_syntaxes_of_one_opener_and_auto_are_refused():
    for pair in (("hermes", "qwen_xml"), ("glm", "hermes"), ("openai", "llama")):
        with pytest.raises(UserError, match="open a call alike: choose one"):
            syntaxes(pair)
    with pytest.raises(UserError, match="chosen from a model's chat template"):
        syntaxes("auto")


@pytest.mark.parametrize(
    ("template", "syntax"),
    [
        ("<|im_start|>{{ m.content }}", "fence"),
        ("<tool_call>\n{{ {'name': …} }}", "hermes"),
        ("<tool_call>\n<function=…>\n<parameter=…>", "qwen_xml"),
        ("<tool_call>{{ name }}\n<arg_key>", "glm"),
        ("<|channel|>analysis<|message|>", "harmony"),
        ("Environment: ipython <|python_tag|>", "llama"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek"),
    ],
)
def test_the_syntax_of_a_template(template, syntax):
    assert detect(template) == syntax


def test_every_syntax_is_found_through_the_registry_and_one_from_outside_plays(tmp_path, monkeypatch):
    for name in registry.names("syntax"):
        assert registry.make("syntax", name).name == name
    (tmp_path / "my_calls.py").write_text(
        "import re\n"
        "from solostream.envs.text.syntax import Block, Call, find\n"
        "class Run:\n"
        "    name, how, opener, partial = 'run', 'Write <run>code</run>.', '<run>', '<(?:r(?:u(?:n)?)?)?'\n"
        "    stops, tools, marks = ('</run>',), False, ()\n"
        "    def enter(self, match):\n"
        "        return Block('call', match.start(), match.end(), match.end())\n"
        "    def end(self, text, block, final):\n"
        "        return find(text, '</run>', block)\n"
        "    def calls(self, body, block):\n"
        "        return [Call('python', {'code': body})]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ((observation, *_),) = play("my_calls:Run", "Now <run>6 * 7</run>")
    assert observation == "42"
