"""The FastAPI application of one worker."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from solostream.errors import SandboxError, UserError
from solostream.sandbox.server import fusion
from solostream.sandbox.server.guard import ClientGone, Guard, unless_gone
from solostream.sandbox.server.metrics import ServerMetrics
from solostream.sandbox.server.peers import Peers
from solostream.sandbox.server.replies import AsciiJSON
from solostream.sandbox.server.sessions import Busy, Gone, Sessions
from solostream.sandbox.server.settings import Settings
from solostream.sandbox.types import Sandbox

HEARTBEAT_S = 1.0


class UvicornServer(Protocol):
    """The part of `uvicorn.Server` that the application needs."""

    should_exit: bool


def create_app(settings: Settings, open_sandbox: Callable[[], Sandbox], peers: Peers, server: UvicornServer) -> FastAPI:
    """The application. Its sandbox opens when it starts and closes when it stops.

    Args:
        peers: this worker's name and the way to the others, to which requests for their sessions are passed on.
        server: what runs the application: told to stop when the sandbox does not start (`app.state.failure` then says
            why), asked whether it does so that leases end.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sandbox = open_sandbox()
        try:
            await (await sandbox.open()).close()  # only now are its claims sure, and an image that is missing known
        except (SandboxError, UserError) as error:
            app.state.failure, server.should_exit = error, True
        sessions = app.state.sessions = Sessions(sandbox, settings, ServerMetrics(), peers.name)
        expiry = asyncio.create_task(sessions.expire())
        try:
            yield
        finally:
            expiry.cancel()
            await sessions.close_all()
            await sandbox.close()
            await peers.close()

    app = FastAPI(title="solostream sandbox", lifespan=lifespan)
    app.state.settings, app.state.peers, app.state.server, app.state.failure = settings, peers, server, None
    app.add_middleware(
        Guard,
        token=settings.token,
        max_body=int(settings.max_body_mb * (1 << 20)),
        host=settings.host,
        stopping=lambda: server.should_exit,
    )
    app.include_router(fusion.router)
    _about_routes(app)
    _session_routes(app)
    _lease_routes(app)
    answer_errors(app)
    return app


def _live(app: FastAPI) -> Sessions:
    sessions: Sessions = app.state.sessions
    return sessions


def _about_routes(app: FastAPI) -> None:
    @app.get("/health")
    async def health() -> Response:
        return AsciiJSON({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(_live(app).metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/sandbox")
    async def describe() -> Response:
        sandbox = _live(app).sandbox
        about = {"backend": app.state.settings.sandbox, "isolation": sandbox.isolation}
        return AsciiJSON({**about, "limits": asdict(sandbox.limits), "claims": sorted(sandbox.claims)})


def _session_routes(app: FastAPI) -> None:
    peers: Peers = app.state.peers
    live = partial(_live, app)

    @app.post("/sessions")
    async def open_session(request: Request) -> Response:
        body = await _object(request)
        lease = body.get("lease")
        if not isinstance(lease, str | None):
            raise UserError('the body is {"lease": id of an open lease} or nothing')
        await _check_lease(app, lease)
        number = await unless_gone(request, live().open(lease), undo=live().close)
        try:
            await _check_lease(app, lease)  # it may have ended while the session opened, which then nothing would close
        except Gone:
            await live().close(number)
            raise
        return AsciiJSON({"id": number, "isolation": live().isolation(number)}, status_code=201)

    @app.post("/sessions/{number}/run")
    async def run(number: str, request: Request) -> Response:
        body = await _object(request)
        code, timeout = body.get("code"), body.get("timeout")
        if not isinstance(code, str) or not isinstance(timeout, int | float | None):
            raise UserError('the body is {"code": string, "timeout": seconds or null}')
        if peers.elsewhere(number):
            return await unless_gone(request, peers.forward(request))
        seen = await unless_gone(request, live().call(number, code, timeout))
        return AsciiJSON(seen.to_dict())

    @app.delete("/sessions/{number}")
    async def close_session(number: str, request: Request) -> Response:
        if peers.elsewhere(number):
            return await peers.forward(request)
        await live().close(number)
        return Response(status_code=204)


def _lease_routes(app: FastAPI) -> None:
    live = partial(_live, app)

    @app.post("/leases")
    async def lease() -> Response:
        return Lease(app)

    @app.get("/leases/{number}")
    async def find_lease(number: str) -> Response:
        return Response(status_code=204 if number in live().leases else 404)

    @app.delete("/leases/{number}")
    async def end_lease(number: str) -> Response:
        await live().close_lease(number)
        return Response(status_code=204)


async def _check_lease(app: FastAPI, number: str | None) -> None:
    """Raises Gone for a lease that no worker holds."""
    if number is None:
        return
    peers: Peers = app.state.peers
    held = await peers.has_lease(number) if peers.elsewhere(number) else number in app.state.sessions.leases
    if not held:
        raise Gone(f"no lease {number[:100]}: it has ended, or was never given; POST /leases opens one")


async def _object(request: Request) -> dict[str, Any]:
    try:
        body = await request.json() if await request.body() else {}
    except (ValueError, RecursionError) as error:  # bad JSON, bytes that are not UTF-8, a thousand brackets
        raise UserError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UserError("the body must be a JSON object")
    return body


def answer_errors(app: FastAPI) -> None:
    """Every failure is one line of JSON: {"detail": ...}."""

    def say(status: int, detail: str, retry_after_s: int | None = None) -> Response:
        headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
        return AsciiJSON({"detail": detail}, status_code=status, headers=headers)

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        return say(error.status, str(error), error.retry_after_s)

    @app.exception_handler(Gone)
    async def gone(_: Request, error: Gone) -> Response:
        return say(404, str(error))

    @app.exception_handler(UserError)
    async def user(_: Request, error: UserError) -> Response:
        return say(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return say(422, "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()))

    @app.exception_handler(SandboxError)
    async def broken(_: Request, error: SandboxError) -> Response:
        app.state.sessions.metrics.errors.inc()
        return say(500, str(error))

    @app.exception_handler(ClientGone)
    async def hung_up(_: Request, error: ClientGone) -> Response:
        return say(499, "the client hung up")


class Lease(Response):
    """A response that stays open: when its client goes away, however it dies, the sessions of the lease are closed."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(media_type="application/json")
        self.app = app
        self.number = f"{app.state.peers.name}-{secrets.token_hex(12)}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the response open; when the client goes, close the sessions of its lease."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        watch = asyncio.create_task(gone())
        self.app.state.sessions.leases.add(self.number)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await self._send(send, f'{{"id": "{self.number}"}}\n')
            while not watch.done() and not self.app.state.server.should_exit:
                await asyncio.wait({watch}, timeout=HEARTBEAT_S)
                await self._send(send, "\n")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            pass  # it is gone
        finally:
            watch.cancel()
            await asyncio.shield(self._end())

    async def _send(self, send: Send, text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def _end(self) -> None:
        self.app.state.sessions.leases.discard(self.number)
        await asyncio.gather(
            self.app.state.sessions.close_lease(self.number), self.app.state.peers.end_lease(self.number)
        )
