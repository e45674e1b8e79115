"""What stands before the application: bearer token, body size; and the watch for clients that hang up."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
OPEN = ("/health", "/v1/ping")  # answered without a token: they tell nothing


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class Guard:
    """ASGI middleware: 401 without the token, 413 for bodies over the limit, whether announced or chunked."""

    def __init__(self, app: ASGIApp, token: str, max_body: int) -> None:
        self.app = app
        self.expected = f"Bearer {token}".encode() if token else b""
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self.expected and scope["path"] not in OPEN and not hmac.compare_digest(given, self.expected):
            return await refuse(send, 401, "a valid 'Authorization: Bearer TOKEN' header is needed")
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_body:
            return await refuse(send, 413, f"a body may have {self.max_body} bytes")
        body = await self._body(receive)
        if body is None:
            return await refuse(send, 413, f"a body may have {self.max_body} bytes")
        return await self.app(scope, replay(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body, or None when it is too long; at most `max_body` bytes and one chunk are ever held."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > self.max_body:
                return None
            if not message.get("more_body", False):
                return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one message, then whatever follows: the disconnect."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:  # the rest of the body is not read, so the connection cannot be used again
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientGone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
