"""A local OpenAI-compatible server that answers as it is told: one function from a request's body to an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Answer:
    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """url: as `chat:URL#MODEL` wants it. bodies: of the requests so far; keys: their Authorization headers."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@asynccontextmanager
async def serving(say: Callable[[dict[str, Any], int], Answer]) -> AsyncIterator[Server]:
    """say: (body of the request, its number from 0) -> what is answered."""
    server = Server()

    async def completions(request: web.Request) -> web.Response:
        body = await request.json()
        server.bodies.append(body)
        server.keys.append(request.headers.get("Authorization", ""))
        answer = say(body, len(server.bodies) - 1)
        text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        kind = "text/html" if isinstance(answer.body, str) else "application/json"
        return web.Response(text=text, status=answer.status, headers=answer.headers, content_type=kind)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    server.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def message(content: Any = None, *, usage: Any = "counted", finish: Any = "stop", **fields: Any) -> Answer:
    """A usual completion. usage: "counted": 11 prompt and 7 completion tokens; None: none told."""
    counts = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18} if usage == "counted" else usage
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **fields}, "finish_reason": finish}
    return Answer(
        {"id": "x", "object": "chat.completion", "choices": [choice], **({"usage": counts} if counts else {})}
    )


def call(code: str, id: str | None = "c1", name: str = "python", arguments: Any = None) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps({"code": code}) if arguments is None else arguments}
    return {"type": "function", "function": function, **({"id": id} if id is not None else {})}
