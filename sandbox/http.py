"""Sandbox over HTTP: a client of `solostream sandbox serve`, or of a plain SandboxFusion server.

Holds what the server's sandbox holds. Sessions hang on a lease, one open connection of this client: when the client
dies, however it dies, the server closes them. A SandboxFusion server keeps no state: every call is a program of its
own, there are no results of expressions, and it is taken to hold nothing.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any, NamedTuple

import aiohttp

from solostream.errors import SandboxError, UserError
from solostream.sandbox.types import Claim, CodeError, Execution, Limits, Session

TOKEN_VARIABLE = "SOLOSTREAM_SANDBOX_TOKEN"
_ANSWER_S = 90.0  # beyond the call's own time-out: the server's queue, and its grace for a stuck call
_BUSY = (503, 504)


class _Answer(NamedTuple):
    status: int
    text: str
    retry_after: str = ""

    def json(self) -> Any:
        return json.loads(self.text)


class HttpSandbox:
    """Sessions on a server.

    Args:
        url: `http://host:port` or `https://...`.
        token: the server's bearer token (default: the environment variable SOLOSTREAM_SANDBOX_TOKEN).
        limits: the server enforces its own; of these only `timeout_s` is used, as the default of `run`.
        connections: at most so many at a time; further calls wait here.
        patience_s: how long a busy server (503, 504) is asked again before the call fails.

    Raises: UserError for a bad URL or a refused token, SandboxError when no server answers.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        limits: Limits | None = None,
        connections: int = 256,
        patience_s: float = 120.0,
    ) -> None:
        token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        about = self._ask()
        self.stateful = about is not None
        self.limits: Limits = Limits(**about["limits"]) if about else limits or Limits()
        if limits is not None:
            self.limits = replace(self.limits, timeout_s=limits.timeout_s)
        self.claims: frozenset[Claim] = frozenset(about["claims"]) - {"fork"} if about else frozenset()
        self.isolation: str = f"http: {about['isolation']}" if about else "http: SandboxFusion"
        self._patience_s = patience_s
        self._connections = connections + 1  # and the lease's
        self._http: aiohttp.ClientSession | None = None
        self._lease: asyncio.Task[None] | None = None
        self._lease_id: asyncio.Future[str] | None = None
        self._sessions: set[HttpSession] = set()

    def _ask(self) -> dict[str, Any] | None:
        """What the server says of its sandbox; None from a SandboxFusion server."""
        try:
            answer = self._get("/sandbox")
            if answer.status == 404 and "pong" in self._get("/v1/ping").text:
                return None
        except (ValueError, http.client.InvalidURL) as error:
            raise UserError(f"'{self.url}' is not a server's address; write http://host:port") from error
        except (OSError, http.client.HTTPException) as error:
            remedy = "start one with `solostream sandbox serve`"
            raise SandboxError(f"no sandbox server answers at {self.url} ({error}); {remedy}") from error
        if answer.status == 401:
            raise UserError(f"{self.url} refuses the token; set {TOKEN_VARIABLE} or pass token=")
        try:
            return {key: answer.json()[key] for key in ("limits", "claims", "isolation")}
        except (ValueError, KeyError, TypeError) as error:
            raise SandboxError(f"{self.url} is no sandbox server: HTTP {answer.status} from /sandbox") from error

    def _get(self, path: str) -> _Answer:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, headers=self._headers), timeout=10
            ) as answer:
                return _Answer(answer.status, answer.read().decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            return _Answer(error.code, error.read().decode("utf-8", "replace"))

    async def open(self) -> Session:
        """A session on the server; the first one takes the lease. Raises SandboxError, UserError."""
        if not self.stateful:
            return FusionSession(self)
        answer = await self.post("/sessions", {"lease": await self._leased()})
        session = HttpSession(self, answer["id"], answer["isolation"])
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        """Close all sessions and give the lease back."""
        await asyncio.gather(*(session.close() for session in list(self._sessions)), return_exceptions=True)
        if self._lease is not None:
            self._lease.cancel()
            await asyncio.gather(self._lease, return_exceptions=True)
            self._lease = None
        await self._client().close()  # made if it never was: what is closed stays closed

    def _client(self) -> aiohttp.ClientSession:
        """The connections, of the event loop that first asks for them."""
        if self._http is None:
            pool = aiohttp.TCPConnector(limit=self._connections)
            self._http = aiohttp.ClientSession(headers=self._headers, connector=pool, trust_env=True)
        return self._http

    async def _leased(self) -> str:
        """The id of a live lease."""
        if self._lease is None or self._lease.done() or self._lease_id is None:
            self._lease_id = asyncio.get_running_loop().create_future()
            self._lease = asyncio.create_task(self._hold(self._lease_id))
        return await asyncio.shield(self._lease_id)

    async def _hold(self, number: asyncio.Future[str]) -> None:
        try:
            patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=30)
            async with self._client().post(f"{self.url}/leases", timeout=patience) as answer:
                async for line in answer.content:
                    if not number.done():
                        number.set_result(json.loads(line)["id"])
        except (aiohttp.ClientError, TimeoutError, RuntimeError, ValueError, KeyError, TypeError) as error:
            if not number.done():
                number.set_exception(SandboxError(f"{self.url} gives no lease, or the sandbox is closed: {error}"))
        finally:
            if not number.done():
                number.set_exception(SandboxError(f"{self.url} gives no lease"))

    async def post(self, path: str, body: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
        """The answer's JSON object; `seconds`: how long the server may work. Raises SandboxError.

        Asked again only when nothing can have run: the server was busy, or could not be connected to.
        """
        give_up = time.monotonic() + self._patience_s
        pause = 0.1
        content = json.dumps(body).encode()  # ASCII: lone surrogates travel as escapes
        headers = {"content-type": "application/json"}
        while True:
            patience = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=seconds + _ANSWER_S)
            try:
                async with self._client().post(
                    self.url + path, data=content, headers=headers, timeout=patience
                ) as said:
                    text = await said.text("utf-8", "replace")
                    answer = _Answer(said.status, text, said.headers.get("retry-after", ""))
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                why, wait = f"cannot be reached ({error or type(error).__name__})", pause
            except (aiohttp.ClientError, TimeoutError) as error:
                raise SandboxError(f"{self.url} broke off: {type(error).__name__} {error}") from error
            except RuntimeError as error:  # aiohttp's word for a closed client
                raise SandboxError(f"the sandbox is closed: {error}") from error
            else:
                if answer.status not in _BUSY:
                    return _read(self.url, answer)
                asked = float(answer.retry_after) if answer.retry_after.isdigit() else 0.0
                why, wait = f"is busy ({_detail(answer)})", max(pause, asked)
            if time.monotonic() + wait > give_up:
                raise SandboxError(f"{self.url} {why}, for {self._patience_s:g} s; give the server more room, or time")
            await asyncio.sleep(wait)
            pause = min(2 * pause, 5.0)

    async def delete(self, path: str) -> None:
        """A server that is gone has nothing to delete."""
        patience = aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60)
        try:
            async with self._client().delete(self.url + path, timeout=patience):
                return
        except (aiohttp.ClientError, TimeoutError, RuntimeError):
            return

    def forget(self, session: HttpSession) -> None:
        """A session of this client has closed."""
        self._sessions.discard(session)


class HttpSession:
    """A session of our server."""

    def __init__(self, sandbox: HttpSandbox, number: str, isolation: str) -> None:
        self.isolation = isolation
        self._sandbox = sandbox
        self._number = number
        self._closed = False
        self._turn = asyncio.Lock()

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """Raises SandboxError. A call that is cancelled closes the session on the server."""
        timeout = self._sandbox.limits.seconds(timeout)
        async with self._turn:
            if self._closed:
                raise SandboxError("the session is closed; open another")
            body = {"code": code, "timeout": timeout}
            return Execution.from_dict(await self._sandbox.post(f"/sessions/{self._number}/run", body, timeout))

    async def close(self) -> None:
        """Close the session on the server. May be called twice."""
        if not self._closed:
            self._closed = True
            self._sandbox.forget(self)
            await self._sandbox.delete(f"/sessions/{self._number}")


class FusionSession:
    """A session of a SandboxFusion server: each call is a program of its own."""

    isolation = "http: SandboxFusion"

    def __init__(self, sandbox: HttpSandbox) -> None:
        self._sandbox = sandbox
        self._closed = False
        self._calls: set[asyncio.Task[Execution]] = set()

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """`state_kept` is always False. Raises SandboxError."""
        if self._closed:
            raise SandboxError("the session is closed; open another")
        call = asyncio.create_task(self._run(code, timeout))
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            if not self._closed:
                raise
            raise SandboxError("the session was closed during the call") from None
        finally:
            call.cancel()
            self._calls.discard(call)

    async def _run(self, code: str, timeout: float | None) -> Execution:
        limits = self._sandbox.limits
        timeout = limits.seconds(timeout)
        body = {"code": code, "language": "python", "run_timeout": timeout, "memory_limit_MB": limits.memory_mb}
        answer = await self._sandbox.post("/run_code", body, timeout)
        result = answer.get("run_result")
        if answer.get("status") == "SandboxError" or not isinstance(result, dict):
            raise SandboxError(f"{self._sandbox.url} could not run the code: {answer.get('message')}")
        return _execution(result, limits.output_bytes)

    async def close(self) -> None:
        """Hangs up on the calls in progress; what the server then does with them is its own affair."""
        self._closed = True
        for call in self._calls:
            call.cancel()


def _execution(result: dict[str, Any], limit: int) -> Execution:
    """A CommandRunResult as an Execution: the last line of the traceback names the error."""
    stdout, stderr = result.get("stdout") or "", result.get("stderr") or ""
    code, error = result.get("return_code"), None
    if result.get("status") == "TimeLimitExceeded":
        status = "timeout"
    elif code is None or code < 0:
        status = "killed"
    else:
        status = "error" if code else "ok"
    head, found, tail = stderr.rpartition("Traceback (most recent call last):")
    if status == "error":
        name, _, message = (tail.strip().splitlines() or [f"SystemExit: {code}"])[-1].partition(": ")
        error = CodeError(name[:limit], message[:limit], (found + tail)[-limit:])
        stderr = head
    return Execution(
        stdout=stdout[:limit],
        stderr=stderr[:limit],
        error=error,
        status=status,  # type: ignore[arg-type]
        stdout_truncated=len(stdout) > limit,
        stderr_truncated=len(stderr) > limit,
        duration_s=result.get("execution_time") or 0.0,
        state_kept=False,
    )


def _read(url: str, answer: _Answer) -> dict[str, Any]:
    if answer.status == 422:
        raise UserError(f"{url} refuses the request: {_detail(answer)}")
    if answer.status >= 400:
        raise SandboxError(f"{url} failed with HTTP {answer.status}: {_detail(answer)}")
    try:
        body = answer.json()
    except ValueError as error:
        raise SandboxError(f"{url} sent no JSON: {error}") from error
    if not isinstance(body, dict):
        raise SandboxError(f"{url} sent no JSON object")
    return body


def _detail(answer: _Answer) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
