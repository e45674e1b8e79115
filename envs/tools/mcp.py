"""The tools of an MCP server (Model Context Protocol), by the official client: over stdio or streamable HTTP.

    tools = ["python", { tool = "mcp", command = "mcp-server-time --local-timezone UTC" }]
    tools = [{ tool = "mcp", url = "http://127.0.0.1:8000/mcp", only = ["search"] }]

One source may be many tools: all that the server lists. A server runs beside this process, as its user, and not in the
sandbox: name only servers that you trust with what a policy asks of them. Each environment has a connection of its own,
which over stdio is a process of its own: for many environments at a time start one server and give its `url`.

What the policy gets wrong (an unknown argument, a tool that reports an error, a call that takes too long) it is told. A
server that has gone is the infrastructure's failure (`SandboxError`): the episode is played again, on a new connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT, CallToolResult

from solostream.envs.workspace import Workspace
from solostream.errors import SandboxError, UserError
from solostream.sandbox.interpreter import wait
from solostream.sandbox.types import CodeError, Execution

MOST = 65_536  # characters kept of one result; how many of them the policy reads the environment says
START_S = 60.0  # a server that has not answered by then will not


def open_mcp(
    *,
    command: str | Sequence[str] | None = None,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    token_env: str | None = None,
    only: Sequence[str] | None = None,
    prefix: str = "",
    timeout_s: float = 30.0,
    per_episode: bool = False,
) -> list[McpTool]:
    """The tools that a server lists.

    command: what starts it, for stdio, with `env` on top of a clean environment and in the folder `cwd`; or url: where
    it serves. token_env: the variable that holds a bearer token for `url`. only: names to take; prefix: put before
    them. timeout_s: of one call. per_episode: a connection for each episode, for servers that remember what was said.
    Raises UserError for a server that does not start, and for names that it does not have.
    """
    if (command is None) == (url is None):
        raise UserError("tool 'mcp' needs one of command (a server to start) and url (where one serves)")
    if timeout_s <= 0:
        raise UserError(f"tool 'mcp': timeout_s is more than 0, not {timeout_s:g}")
    words = tuple(shlex.split(command)) if isinstance(command, str) else tuple(command or ())
    server = McpServer(words, url, tuple(sorted((env or {}).items())), cwd, token_env, timeout_s, per_episode)
    listed = _listed(server)
    if unknown := set(only or ()) - {tool.name for tool in listed}:
        names = ", ".join(tool.name for tool in listed)
        raise UserError(f"{server} has no tool {', '.join(sorted(unknown))}; it has: {names}")
    return [McpTool(tool, server, prefix) for tool in listed if only is None or tool.name in only]


class McpServer:
    """How to reach one. Two with the same settings are the same."""

    def __init__(
        self,
        words: tuple[str, ...],
        url: str | None,
        env: tuple[tuple[str, str], ...],
        cwd: str | None,
        token_env: str | None,
        timeout_s: float,
        per_episode: bool,
    ) -> None:
        """Raises UserError for a token that is not there."""
        self.key = (words, url, env, cwd, token_env)
        self.words, self.url, self.env, self.cwd = words, url, dict(env), cwd
        self.timeout_s, self.per_episode = timeout_s, per_episode
        self.token = os.environ.get(token_env) if token_env else None
        if token_env and not self.token:
            raise UserError(f"tool 'mcp': the variable {token_env} holds no token for {url}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, McpServer) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return f"the MCP server {self.url or shlex.join(self.words)}"


class Connection:
    """A session with a server, in a task of its own: the client has to be closed by the task that opened it."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._stop = asyncio.Event()
        self._client: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live())

    async def client(self) -> mcp.Client:
        """Once it is there. Raises SandboxError, with what the server said last, when it does not start."""
        either: set[asyncio.Future[Any]] = {self._client, self._task}
        done, _ = await asyncio.wait(either, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if self._client in done:
            return self._client.result()
        if not done:
            await self.close()
            raise SandboxError(f"{self._server} did not answer within {START_S:g} s")
        raise SandboxError(f"{self._server} did not start: {_reason(self._task)}")

    async def close(self) -> None:
        """Idempotent; what goes wrong with a server that is given up anyway is nobody's business."""
        self._stop.set()
        if not self._client.done():
            self._task.cancel()
        await asyncio.wait([self._task])
        self._task.cancelled() or self._task.exception()

    async def _live(self) -> None:
        server = self._server
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            try:
                async with mcp.Client(_transport(server, log)) as client:
                    self._client.set_result(client)
                    await self._stop.wait()
            except Exception as error:
                log.seek(0)
                said = [line.strip() for line in log.read().splitlines() if line.strip()]
                raise SandboxError(said[-1] if said else _innermost(error)) from error


class McpTool:
    """One tool of a server."""

    def __init__(self, listed: mcp.Tool, server: McpServer, prefix: str) -> None:
        """Raises UserError for a schema that describes no arguments."""
        self.name = prefix + listed.name
        self.description = (listed.description or listed.title or listed.name).strip()
        schema: Any = listed.input_schema
        properties = schema.get("properties", {}) if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping) or not all(isinstance(one, Mapping) for one in properties.values()):
            raise UserError(
                f"{server}: the schema of its tool {listed.name} describes no arguments; leave it out (only)"
            )
        self.parameters: Mapping[str, Any] = {"type": "object", "required": [], **schema, "properties": properties}
        self._told, self._server = listed.name, server

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> Execution:
        """Raises ValueError for what the server calls a mistake, SandboxError when it has gone."""
        server = self._server
        connection = await workspace.hold(f"mcp {server.key}", lambda: Connection(server), server.per_episode)
        try:
            client = await connection.client()
            result = await client.call_tool(self._told, dict(arguments), read_timeout_seconds=server.timeout_s)
        except mcp.MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                message = f"the tool did not answer within {server.timeout_s:g} s"
                return Execution(status="timeout", error=CodeError("TimeoutError", message, ""))
            if error.code != CONNECTION_CLOSED:
                raise ValueError(error.message) from None
            await workspace.drop(f"mcp {server.key}")
            raise SandboxError(f"{server} has gone: {error.message}") from error
        except Exception as error:
            await workspace.drop(f"mcp {server.key}")
            raise SandboxError(f"{server} failed: {_innermost(error)}") from error
        return _execution(result)


def _transport(server: McpServer, log: Any) -> Any:
    if server.url is not None:
        headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
        return streamable_http_client(
            server.url, http_client=httpx2.AsyncClient(headers=headers, timeout=server.timeout_s)
        )
    told = mcp.StdioServerParameters(command=server.words[0], args=[*server.words[1:]], env=server.env, cwd=server.cwd)
    return mcp.stdio_client(told, errlog=log)


@lru_cache(maxsize=64)
def _listed(server: McpServer) -> tuple[mcp.Tool, ...]:
    """What it lists; asked once a process. Raises UserError."""

    async def ask() -> tuple[mcp.Tool, ...]:
        connection = Connection(server)
        try:
            client = await connection.client()
            found: list[mcp.Tool] = []
            cursor = None
            while True:
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if not cursor:
                    return tuple(found)
        finally:
            await connection.close()

    try:
        return wait(ask())
    except SandboxError as error:
        raise UserError(str(error)) from None
    except mcp.MCPError as error:
        raise UserError(f"{server} does not list its tools: {error.message}") from None


def _execution(result: CallToolResult) -> Execution:
    """Its texts; of what is no text, what it is and how long."""
    parts = [_shown(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n".join(parts)
    if result.is_error:
        return Execution(status="error", error=CodeError("ToolError", text[:MOST], ""))
    return Execution(stdout=text[:MOST], stdout_truncated=len(text) > MOST)


def _shown(block: Any) -> str:
    text = getattr(block, "text", None) or getattr(getattr(block, "resource", None), "text", None)
    if isinstance(text, str):
        return text
    size = len(getattr(block, "data", "") or "")
    return f"[{block.type}, {size} characters]" if size else f"[{block.type}]"


def _reason(task: asyncio.Task[None]) -> str:
    return "it was stopped" if task.cancelled() else str(task.exception() or "it ended at once")


def _innermost(error: BaseException) -> str:
    """Of a group of exceptions the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".rstrip(": ").splitlines()[0]
