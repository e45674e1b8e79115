"""What stands before the application: who may ask and how much; and the watch for clients that hang up."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
OPEN = ("/health", "/v1/ping")  # answered without a token: they tell nothing
BODY_S = 30.0
BODIES = 16  # of the largest size, that are held at a time


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class Guard:
    """ASGI middleware: who may ask, and how much.

    Args:
        token: 401 without it. Empty: everyone may, and then a web page must not be able to ask in the name of whoever
            reads it: 403 for a Host that is a name on the internet (a page can make its own name mean this machine),
            and for an Origin that is not this server.
        max_body: bytes; 413 for more, whether announced or chunked. 408 for a body that does not arrive in `BODY_S`,
            415 for one that is not JSON: forms and plain text a page may send without asking. 503 while `BODIES` times
            as much is held: many clients that send slowly do not fill the memory.
        host: the address that the server was told to listen on; a name here is a name it may be called by.
        stopping: whether the server shuts down: calls that are then cut short are answered 503.
    """

    def __init__(self, app: ASGIApp, token: str, max_body: int, host: str, stopping: Callable[[], bool]) -> None:
        self.app = app
        self.expected = f"Bearer {token}".encode() if token else b""
        self.max_body, self.host, self.stopping = max_body, host, stopping
        self._held = 0  # bytes of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what must not ask; everything else goes to the app with its body read."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        why, body = self._refused(scope["path"], headers), bytearray()
        try:
            if why is None:
                try:
                    async with asyncio.timeout(BODY_S):
                        why = await self._read(receive, body)
                except TimeoutError:
                    why = (408, f"the body did not arrive within {BODY_S:g} s")
            why = why or self._refused_kind(body, headers)
            if why is not None:
                return await refuse(send, *why)
            return await self._answer(scope, replay(bytes(body), receive), send)
        finally:
            self._held -= len(body)

    def _refused_kind(self, body: bytearray, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if body and kind != b"application/json":
            return 415, "the body must be JSON, and say so: 'Content-Type: application/json'"
        return None

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        given = headers.get(b"authorization", b"")
        if self.expected and path not in OPEN and not hmac.compare_digest(given, self.expected):
            return 401, "a valid 'Authorization: Bearer TOKEN' header is needed"
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.expected and not self._is_ours(host):
            return 403, f"without a token this server answers to addresses, not to {host!r:.100}; start it with a token"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not self.expected and origin and origin.partition("://")[2] != host:
            return 403, f"without a token this server answers to no page of {origin!r:.100}; start it with a token"
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_body:
            return 413, f"a body may have {self.max_body} bytes"
        return None

    def _is_ours(self, host: str) -> bool:
        """An address, or a name without a dot (localhost, a service of docker compose): neither can be taken over."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets that do not match
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return "." not in name or name == self.host.lower()
        return True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except asyncio.CancelledError:
            if not self.stopping():
                raise
            if not started:
                await refuse(send, 503, "the server shuts down; the call was ended")

    async def _read(self, receive: Receive, body: bytearray) -> tuple[int, str] | None:
        """Fill `body`, or say why not; at most `max_body` bytes and one chunk are ever held."""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            piece = message.get("body", b"")
            body += piece
            self._held += len(piece)
            if len(body) > self.max_body:
                return 413, f"a body may have {self.max_body} bytes"
            if self._held > BODIES * self.max_body:
                return 503, "too many large bodies at once; try again"
            if not message.get("more_body", False):
                return None


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
    """Answer with `status` and a JSON {"detail": …}; after 408, 413, 503 the connection closes, its body is unread."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413, 503):  # the rest of the body may be unread, so the connection cannot be used again
        headers.append((b"connection", b"close"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def unless_gone(
    request: Request, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]] | None = None
) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientGone.

    What nobody is there to be told of is taken back by `undo`.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)  # news of the client that came in the same moment
        if watching.done():
            raise ClientGone
        return working.result()
    except BaseException:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        if undo is not None and not working.cancelled() and working.exception() is None:
            await asyncio.shield(undo(working.result()))
        raise
    finally:
        watching.cancel()
