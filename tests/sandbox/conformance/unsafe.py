"""A backend that holds nothing and claims everything: the suite must see through it.

One plain child process a session, JSON lines over its standard streams, results computed inside, nothing confined.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from solostream.errors import SandboxError
from solostream.sandbox.conformance.case import CLAIMS
from solostream.sandbox.types import CodeError, Execution, Limits

_CHILD = """
import ast, contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    reply = {"result": None, "error": None}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            tree = ast.parse(json.loads(line))
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "code", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "code", "eval"), names)
                reply["result"] = None if value is None else repr(value)
        except Exception as error:
            reply["error"] = [type(error).__name__, str(error), traceback.format_exc()]
    print(json.dumps({**reply, "stdout": out.getvalue(), "stderr": err.getvalue()}), flush=True)
"""


class UnsafeSession:
    isolation = "none"

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.process: asyncio.subprocess.Process | None = None
        self.closed = False
        self.turn = asyncio.Lock()

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        if self.closed:
            raise SandboxError("the session is closed; open another")
        async with self.turn:
            return await self._run(code, timeout or self.limits.timeout_s)

    async def _run(self, code: str, timeout: float) -> Execution:
        start = time.monotonic()
        if self.process is None:
            pipe = asyncio.subprocess.PIPE
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _CHILD, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, limit=1 << 27
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code).encode() + b"\n")
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), timeout)
            reply = json.loads(line) if line else None
        except TimeoutError:
            return await self._lost("timeout", start)
        except ValueError as error:
            raise SandboxError(f"not a reply: {error}") from error
        if reply is None:
            return await self._lost("killed", start)
        error = CodeError(*reply.pop("error")) if reply["error"] else reply.pop("error")
        status = "error" if error else "ok"
        return Execution(**reply, error=error, status=status, duration_s=time.monotonic() - start)

    async def _lost(self, status, start: float) -> Execution:
        await self._kill()
        return Execution(status=status, state_kept=False, duration_s=time.monotonic() - start)

    async def _kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def close(self) -> None:
        self.closed = True
        await self._kill()


class UnsafeSandbox:
    isolation = "none"
    claims = frozenset(CLAIMS)

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits(timeout_s=20, disk_mb=4, memory_mb=128, processes=32)
        self.sessions: list[UnsafeSession] = []

    async def open(self) -> UnsafeSession:
        self.sessions.append(UnsafeSession(self.limits))
        return self.sessions[-1]

    async def close(self) -> None:
        for session in self.sessions:
            await session.close()
