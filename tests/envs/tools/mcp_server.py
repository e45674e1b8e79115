"""A server with tools that do what servers do wrong. `mcp_server.py` speaks stdio, `mcp_server.py PORT` HTTP."""

import asyncio
import os
import sys

from mcp.server import MCPServer
from mcp.types import ImageContent, TextContent

server = MCPServer("trouble", log_level="CRITICAL")
said: list[str] = []


@server.tool()
def remember(word: str, times: int | None = None) -> str:
    """Remember a word; all that was remembered."""
    said.extend([word] * (times or 1))
    return " ".join(said)


@server.tool()
def long(letters: int) -> str:
    """So many letters."""
    return "a" * letters


@server.tool()
async def hang() -> str:
    """Never answers."""
    await asyncio.sleep(3600)
    return "late"


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(3)


@server.tool()
def fails() -> str:
    """Always an error."""
    raise ValueError("no such thing")


@server.tool()
def picture() -> list[TextContent | ImageContent]:
    """A picture and a word."""
    return [TextContent(type="text", text="see:"), ImageContent(type="image", data="aGVsbG8=", mime_type="image/png")]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
