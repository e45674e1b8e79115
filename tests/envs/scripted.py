"""A sandbox that plays a script: what the environment does can be tested without any interpreter.

`reply:TEXT` prints TEXT; `set:TEXT` remembers it, `get` prints all that was remembered in this session; `raise`,
`timeout`, `lost` end as such executions; `meet:N` waits until N calls are here; `crash` fails as infrastructure,
`crash:N` only in the first N sessions.
"""

from __future__ import annotations

import asyncio

from solostream.errors import SandboxError
from solostream.sandbox.types import CodeError, Execution, Limits

OPEN: list[Scripted] = []  # sandboxes that were made and not closed


class Scripted:
    isolation = "none: nothing is executed"
    claims = frozenset({"state"})

    def __init__(self, limits: Limits | None = None, tag: str = "") -> None:
        self.limits, self.tag = limits or Limits(), tag
        self.opened = self.live = self.here = 0
        self.all_here = asyncio.Event()
        self.log: list[str] = []
        OPEN.append(self)

    async def open(self) -> ScriptedSession:
        self.opened += 1
        self.live += 1
        return ScriptedSession(self, self.opened)

    async def close(self) -> None:
        if self in OPEN:
            OPEN.remove(self)


class ScriptedSession:
    isolation = Scripted.isolation

    def __init__(self, sandbox: Scripted, number: int) -> None:
        self._sandbox, self._number = sandbox, number
        self._memory: list[str] = []
        self._closed = False

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        assert not self._closed
        self._sandbox.log.append(code)
        verb, _, text = code.partition(":")
        if verb == "reply":
            return Execution(stdout=text + "\n")
        if verb == "set":
            self._memory.append(text)
            return Execution()
        if verb == "get":
            return Execution(result=repr(self._memory))
        if verb == "raise":
            error = CodeError(
                "ZeroDivisionError", "division by zero", "Traceback:\nZeroDivisionError: division by zero"
            )
            return Execution(status="error", error=error)
        if verb == "timeout":
            return Execution(status="timeout")
        if verb == "meet":
            self._sandbox.here += 1
            if self._sandbox.here == int(text):
                self._sandbox.all_here.set()
            await self._sandbox.all_here.wait()
            return Execution(stdout="met")
        if verb == "lost":
            self._memory.clear()
            return Execution(status="killed", state_kept=False)
        if verb == "crash" and (not text or self._number <= int(text)):
            raise SandboxError("the machine is gone")
        return Execution()

    async def close(self) -> None:
        self._sandbox.live -= not self._closed
        self._closed = True
