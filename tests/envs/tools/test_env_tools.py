"""Tools: each by itself in a real sandbox, several in one environment, and one from a plug-in package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solostream import registry
from solostream.envs import ToolEnv
from solostream.envs.tools import Tool, json_schema, make_tool, wrong_arguments
from solostream.envs.tools.search import Search
from solostream.envs.workspace import Workspace
from solostream.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def workspace():
    space = Workspace("fork", {})
    yield space
    await space.close()


@pytest.mark.parametrize("name", ["python", "calculator", "search", "bash", "fold"])
def test_every_built_in_tool_keeps_the_contract(name):
    tool = make_tool(name)
    assert isinstance(tool, Tool)
    schema = json.loads(json.dumps(json_schema(tool)))
    assert schema["function"]["name"] == name == tool.name
    assert set(tool.parameters["required"]) <= set(tool.parameters["properties"])


async def test_python_keeps_state_or_does_not(workspace):
    tool = make_tool("python")
    await tool({"code": "x = 41"}, workspace)
    assert (await tool({"code": "x + 1"}, workspace)).result == "42"
    fresh = make_tool({"tool": "python", "stateful": False})
    assert (await fresh({"code": "x + 1"}, workspace)).error.name == "NameError"


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ({"expression": "2^10"}, "1024\n"),
        ({"expression": "sqrt(8)"}, "2*sqrt(2) = 2.82842712474619\n"),
        ({"expression": "(x+1)^2", "equals": "x^2 + 2x + 1"}, "equal\n"),
        ({"expression": "x + 1", "equals": "x"}, "not equal: the difference is 1\n"),
        ({"expression": "integrate(x^2, (x, 0, 3))"}, "9\n"),
    ],
)
async def test_calculator(workspace, arguments, seen):
    assert (await make_tool("calculator")(arguments, workspace)).stdout == seen


async def test_calculator_cannot_be_talked_out_of_its_quotes(workspace):
    """Whatever the expression says, it runs in the sandbox and apart from the episode's interpreter."""
    await workspace.run("secret = 7")
    execution = await make_tool("calculator")({"expression": "') + secret + ('"}, workspace)
    assert execution.error is not None
    assert (await workspace.run("secret")).result == "7"


async def test_search_ranks_and_never_takes_words_for_operators(tmp_path):
    (tmp_path / "cats.md").write_text("Cats purr. A cat sleeps all day.")
    (tmp_path / "dogs.txt").write_text("Dogs bark at a cat.")
    (tmp_path / "fish.txt").write_text("Fish swim.")
    tool = Search(str(tmp_path), k=2)
    found = await tool({"query": "CAT"}, None)
    assert found.index("cats:") < found.index("dogs:")
    assert "fish" not in found
    assert await tool({"query": '" OR NEAR( AND NOT *'}, None) == "nothing found"
    assert await tool({"query": "aardvark"}, None) == "nothing found"
    with pytest.raises(ValueError, match="no words"):
        await tool({"query": "!?"}, None)


def test_a_bad_corpus_says_where(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"title": "a", "text": "b"}\n{"title": "a"}\n')
    with pytest.raises(UserError, match="line 2"):
        Search(str(bad))
    with pytest.raises(UserError, match="no corpus at"):
        Search(str(tmp_path / "none.jsonl"))


def test_arguments_are_checked_against_the_schema():
    tool = make_tool("calculator")
    assert wrong_arguments(tool, {"expression": "1"}) is None
    assert "'expression' is missing" in wrong_arguments(tool, {})
    assert "of type string" in wrong_arguments(tool, {"expression": 1})
    assert "unknown argument 'x'; calculator takes: expression, equals" in wrong_arguments(
        tool, {"expression": "1", "x": 1}
    )


async def test_several_tools_in_one_episode():
    env = ToolEnv("lookup", sandbox="fork", tools=["python", "calculator", "search"], syntax="hermes")
    await env.areset(options={"task_id": "lookup-01"})

    async def call(name, **arguments):
        return (await env.astep(f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"))[0]

    assert "binomial(2n, n)/(n + 1)" in await call("search", query="Catalan")
    assert await call("python", code="from math import comb\ncomb(24, 12) // 13") == "208012"
    assert await call("calculator", expression="binomial(24, 12)/13", equals="208012") == "equal"
    assert await call("search", query="!") == "ValueError: the query has no words"
    assert (await env.astep(r"\boxed{208012}"))[1] == 1.0
    assert [step.executions[0].status for step in env.trace[:4]] == ["ok", "ok", "ok", "error"]
    await env.aclose()


def test_the_example_plug_in_is_found_by_its_entry_point(tmp_path):
    """Installed as a user would install it, used in a process of its own."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    built = subprocess.run([*install, str(ROOT / "examples" / "solostream-tool")], capture_output=True, text=True)
    if built.returncode and not os.environ.get("CI"):
        pytest.skip(f"pip cannot fetch the build backend here: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from solostream.envs import ToolEnv
env = ToolEnv(tools=["python", {{"tool": "convert", "digits": 3}}], syntax="hermes", sandbox="fork")
env.reset(seed=0)
for arguments in ('{{"value": 3, "unit": "mi", "to": "km"}}', '{{"value": 3, "unit": "mile", "to": "km"}}'):
    print(env.step('<tool_call>{{"name": "convert", "arguments": ' + arguments + '}}</tool_call>')[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["4.83 km", "ValueError: unknown unit 'mile'"]


def test_installed_packages_are_read_once_however_many_environments_are_made(tmp_path, monkeypatch):
    """A run makes hundreds; to look through hundreds of packages for each took a minute of a quickstart."""
    asked = []
    read = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or read(group=group))
    for folder in ("first", "second"):
        info = tmp_path / folder / f"{folder}_plug-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder}-plug\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[solostream.tool]\n{folder} = {folder}_plug:make\n")
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    for _ in range(3):
        ToolEnv(tools=["python", "calculator"], syntax="hermes", sandbox="fork").close()
    assert "solostream.tool" in asked
    assert len(asked) == len(set(asked))
    assert "first" in registry.names("tool")
    assert "second" not in registry.names("tool")
    monkeypatch.syspath_prepend(str(tmp_path / "second"))  # another search path is another answer
    assert registry.find("tool", "second") == "second_plug:make"
