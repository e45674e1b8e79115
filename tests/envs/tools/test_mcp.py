"""MCP servers as tools: one from the package index, and one of our own that does what servers do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from solostream.envs import Task, ToolEnv
from solostream.envs.tools import make_tools, tools_by_name, wrong_arguments
from solostream.envs.tools.mcp import MOST
from solostream.envs.tools.running import run_call
from solostream.envs.types import ToolCall
from solostream.envs.workspace import Workspace
from solostream.errors import SandboxError, UserError

TROUBLE = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]
CLOCK = [sys.executable, "-m", "mcp_server_time", "--local-timezone", "UTC"]


@pytest.fixture
async def workspace():
    space = Workspace("fork", {})
    yield space
    await space.close()


def source(**options):
    return {"tool": "mcp", "command": TROUBLE, **options}


async def called(tools, workspace, name, **arguments):
    return await run_call(ToolCall(name, arguments, (0, 0)), tools, workspace)


def servers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it went in between
            if "mcp_server" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_an_episode_with_a_server_from_the_index():
    """Its own schema, as the chat template is told; an answer that a policy can read; nothing left behind."""
    env = ToolEnv([Task("t", "?", "20:30")], tools=[{"tool": "mcp", "command": CLOCK}], syntax="hermes", answer="boxed")
    names = {tool["function"]["name"] for tool in env.tools}
    assert names == {"get_current_time", "convert_time"}
    try:
        env.reset(seed=0)
        asked = {"source_timezone": "Europe/Berlin", "time": "12:30", "target_timezone": "Asia/Tokyo"}
        call = json.dumps({"name": "convert_time", "arguments": asked})
        observation = env.step(f"<tool_call>{call}</tool_call>")[0]
        assert "T20:30:00+09:00" in observation
        wrong = json.dumps({"name": "convert_time", "arguments": {**asked, "target_timezone": "Nowhere"}})
        assert "Invalid timezone" in env.step(f"<tool_call>{wrong}</tool_call>")[0]
        assert env.step("\\boxed{20:30}")[1] == 1.0
    finally:
        env.close()
    assert not servers()


async def test_what_goes_wrong(workspace):
    """The policy's mistakes and the tool's are told; a server that has gone is the infrastructure's."""
    tools = tools_by_name([source(timeout_s=4.0)])
    assert (await called(tools, workspace, "remember", word="one", times=2))[1] == "one one"
    assert (await called(tools, workspace, "remember", word="two", times=None))[1] == "one one two"  # it remembers
    execution, said = await called(tools, workspace, "fails")
    assert (execution.status, "Error executing tool fails" in said) == ("error", True)
    execution, said = await called(tools, workspace, "hang")
    assert (execution.status, said) == ("timeout", "TimeoutError: the tool did not answer within 4 s")
    assert (await called(tools, workspace, "picture"))[1] == "see:\n[image, 8 characters]"
    execution, said = await called(tools, workspace, "long", letters=MOST + 5)
    assert len(execution.stdout) == MOST
    assert said.endswith("[… output cut …]")
    assert (await called(tools, workspace, "long", letters="many"))[1] == (
        "Error: argument 'letters' must be of type integer"
    )
    with pytest.raises(SandboxError, match=r"the MCP server .* has gone"):
        await called(tools, workspace, "die")
    assert (await called(tools, workspace, "remember", word="new"))[1] == "new"  # another server


async def test_a_connection_for_each_episode_or_for_all(workspace):
    lasting, fresh = tools_by_name([source(prefix="l_")]), tools_by_name([source(per_episode=True, prefix="f_")])
    for tools, name, wanted in ((lasting, "l_remember", "a a"), (fresh, "f_remember", "a")):
        assert (await called(tools, workspace, name, word="a"))[1] == "a"
        await workspace.end_episode()
        assert (await called(tools, workspace, name, word="a"))[1] == wanted
        await workspace.close()
        assert not servers()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"command": "no-such-server"}, "the MCP server no-such-server did not start: FileNotFoundError"),
        ({"command": [sys.executable, "-c", "import sys; sys.exit('set KEY')"]}, "did not start: set KEY"),
        ({"command": "true"}, "the MCP server true did not start: MCPError: Connection closed"),
        ({"command": None, "url": "http://127.0.0.1:9/mcp"}, "127.0.0.1:9/mcp did not start: ConnectError"),
        ({"only": ["lang"]}, r"has no tool lang; it has: remember, long, hang"),
        ({"command": None}, "needs one of command .* and url"),
        ({"url": "http://127.0.0.1:9"}, "needs one of command .* and url"),
        ({"timeout_s": 0.0}, "timeout_s is more than 0"),
        ({"command": None, "url": "http://127.0.0.1:9", "token_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no token"),
        ({"comand": "x"}, "did you mean 'command'"),
    ],
)
def test_a_server_that_is_not_there_is_told_in_one_line(options, says):
    with pytest.raises(UserError, match=says) as told:
        make_tools(source(**options))
    assert "\n" not in str(told.value)


def test_two_servers_with_the_same_tools_need_a_prefix():
    with pytest.raises(UserError, match="two tools have one name"):
        tools_by_name([source(), source()])
    assert len(tools_by_name([source(only=["long", "fails"]), source(only=["long"], prefix="b_")])) == 3


def test_types_of_arguments_as_servers_write_them():
    class Odd:
        name = "odd"
        description = "Odd."
        parameters = {  # noqa: RUF012
            "properties": {
                "either": {"type": ["integer", "null"]},
                "any": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "new": {"type": "datetime"},
            }
        }

        async def __call__(self, arguments, workspace):
            return ""

    for right in ({"either": 3}, {"either": None}, {"any": 3}, {"new": "x"}, {}):
        assert wrong_arguments(Odd(), right) is None
    for wrong in ("3", True, 2.5):
        assert wrong_arguments(Odd(), {"either": wrong}) == "argument 'either' must be of type integer or null"


async def test_over_http(workspace):
    """One server for many environments; with it gone the calls are infrastructure's failures, and it may come back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = await _serve(port)
    try:
        tools = tools_by_name([{"tool": "mcp", "url": f"http://127.0.0.1:{port}/mcp", "only": ["remember", "fails"]}])
        other = Workspace("fork", {})
        assert (await called(tools, workspace, "remember", word="a"))[1] == "a"
        assert (await called(tools, other, "remember", word="b"))[1] == "a b"
        await other.close()
        assert "Error executing tool fails" in (await called(tools, workspace, "fails"))[1]
        server.kill()
        await server.wait()
        with pytest.raises(SandboxError, match=f"the MCP server http://127.0.0.1:{port}/mcp"):
            await called(tools, workspace, "remember", word="c")
        server = await _serve(port)
        assert (await called(tools, workspace, "remember", word="d"))[1] == "d"
    finally:
        server.kill()
        await server.wait()


async def _serve(port: int) -> asyncio.subprocess.Process:
    """Returns when it answers."""
    server = await asyncio.create_subprocess_exec(
        *TROUBLE, str(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return server
    server.kill()
    raise AssertionError("the server did not come up")
