"""A sandbox plug-in for a provider of remote interpreters over HTTP, in the manner of E2B or Modal.

The provider's API here: `POST /sandboxes` -> {"id"}; `POST /sandboxes/ID/execute` {"code", "timeout_s"} -> `stdout`,
`stderr`, `result`, `error`; `DELETE /sandboxes/ID`. For a real provider, write these three calls as its SDK spells
them; what the rest shows holds for all:

- What the code did is an `Execution`. What the provider did (refused, slow, gone) is a `SandboxError`: the caller
  repeats the call in a new session and never takes it for the model's doing.
- Claim only what is tested: `solostream sandbox check remote`. What isolates there is the provider's word.
- The time-out is the provider's to enforce; the client waits a little longer and then gives up on the sandbox.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import aiohttp

from solostream.errors import SandboxError, UserError
from solostream.sandbox import Execution
from solostream.sandbox.types import Claim, CodeError, Limits

_GRACE_S = 10.0  # for the network, beyond a call's time-out
_START_S = 60.0


class RemoteSandbox:
    """Interpreters of the provider at `url`. `key`: its API key (default: the environment's REMOTE_API_KEY)."""

    claims: frozenset[Claim] = frozenset({"state"})
    isolation = "remote"

    def __init__(self, *, url: str, key: str | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._key = key or os.environ.get("REMOTE_API_KEY", "")
        if not self._key:
            raise UserError("the remote sandbox needs a key; pass key=... or set REMOTE_API_KEY")
        self._url = url.rstrip("/")
        self._http: aiohttp.ClientSession | None = None
        self._open: set[RemoteSession] = set()

    async def open(self) -> RemoteSession:
        made = await self.ask("POST", "/sandboxes", {"memory_mb": self.limits.memory_mb}, _START_S)
        session = RemoteSession(self, str(made.get("id")))
        self._open.add(session)
        return session

    async def close(self) -> None:
        await asyncio.gather(*(session.close() for session in list(self._open)), return_exceptions=True)
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def ask(self, method: str, path: str, body: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """One request. Raises SandboxError for whatever is not the code's doing."""
        if self._http is None:
            self._http = aiohttp.ClientSession(headers={"authorization": f"Bearer {self._key}"})
        try:
            patience = aiohttp.ClientTimeout(total=seconds)
            async with self._http.request(method, self._url + path, json=body, timeout=patience) as answer:
                if answer.status >= 400:
                    raise SandboxError(f"the provider answers {answer.status}: {(await answer.text())[:200]}")
                return await answer.json() if answer.status != 204 else {}
        except TimeoutError:
            raise SandboxError(f"the provider gave no answer within {seconds:.0f} s") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise SandboxError(f"the provider cannot be asked: {error}") from error

    def forget(self, session: RemoteSession) -> None:
        self._open.discard(session)


class RemoteSession:
    isolation = "remote"

    def __init__(self, sandbox: RemoteSandbox, number: str) -> None:
        self._sandbox = sandbox
        self._path = f"/sandboxes/{number}"
        self._turn = asyncio.Lock()
        self._closed = False

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        limits = self._sandbox.limits
        seconds = limits.seconds(timeout)
        async with self._turn:
            if self._closed:
                raise SandboxError("the session is closed")
            start = time.monotonic()
            body = {"code": code, "timeout_s": seconds}
            seen = await self._sandbox.ask("POST", self._path + "/execute", body, seconds + _GRACE_S)
        (out, out_cut), (err, err_cut) = _cut(seen.get("stdout"), limits), _cut(seen.get("stderr"), limits)
        result, result_cut = _cut(seen.get("result"), limits)
        error = seen.get("error")
        status = "ok" if error is None else "timeout" if error.get("name") == "TimeoutError" else "error"
        return Execution(
            stdout=out,
            stderr=err,
            result=result if seen.get("result") is not None else None,
            error=None if error is None else CodeError(error["name"], error["message"], error.get("traceback", "")),
            status=status,
            stdout_truncated=out_cut,
            stderr_truncated=err_cut,
            result_truncated=result_cut,
            duration_s=time.monotonic() - start,
            state_kept=bool(seen.get("alive", True)),
        )

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._sandbox.forget(self)
            await self._sandbox.ask("DELETE", self._path, None, _GRACE_S)


def _cut(text: str | None, limits: Limits) -> tuple[str, bool]:
    """At most `output_bytes` of UTF-8, whatever the provider sends."""
    raw = (text or "").encode("utf-8", "replace")
    return raw[: limits.output_bytes].decode("utf-8", "ignore"), len(raw) > limits.output_bytes
