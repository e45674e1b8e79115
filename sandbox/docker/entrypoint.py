"""The server in the container: `python -m solostream.sandbox.docker.entrypoint SOCKET`.

It connects out to the host's socket, once and before any session exists; the host then closes its listener and removes
the socket. So there is nothing in the container that model code could connect to, and nothing on the host that it
could write. When the connection ends (the host closed it or died) the process ends, and the container with it.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from typing import Any

from solostream.errors import SandboxError, UserError
from solostream.sandbox.docker import frames
from solostream.sandbox.fork import ForkSandbox, ForkSession
from solostream.sandbox.types import Limits


class SessionServer:
    """Answers each request in its own task, so that one session's long call holds up nobody."""

    def __init__(self, sandbox: ForkSandbox, writer: asyncio.StreamWriter) -> None:
        self.sandbox = sandbox
        self.writer = writer
        self.sessions: dict[int, ForkSession] = {}
        self.numbers = itertools.count(1)
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Until the connection ends."""
        while True:
            try:
                request = await frames.read(reader, frames.CODE_LENGTH * 12 + 4096)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            task = asyncio.create_task(self.answer(request))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def answer(self, request: dict[str, Any]) -> None:
        """Do one request and write its reply. Every fault becomes {"failed": why}: the host must not wait in vain."""
        try:
            reply = await getattr(self, f"do_{request['op']}")(request)
        except (SandboxError, UserError) as error:
            reply = {"failed": str(error)}
        except Exception as error:  # a fault of this server must reach its caller, not hang it
            reply = {"failed": f"{type(error).__name__}: {error}"}
        self.writer.write(frames.pack({"id": request["id"], **reply}))
        await self.writer.drain()

    async def do_open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open a session: its number and its isolation."""
        session = await self.sandbox.open()
        number = next(self.numbers)
        self.sessions[number] = session
        return {"session": number, "isolation": session.isolation}

    async def do_fork(self, request: dict[str, Any]) -> dict[str, Any]:
        """Copy a session: the number of the copy and its isolation."""
        session = await self.sessions[request["session"]].fork()
        number = next(self.numbers)
        self.sessions[number] = session
        return {"session": number}

    async def do_run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run code in a session: the `Execution` as a record."""
        seen = await self.sessions[request["session"]].run(request["code"], timeout=request["timeout"])
        # The host cuts again; here it keeps the frame within its cap.
        return {"execution": frames.execution(seen.to_dict(), self.sandbox.limits).to_dict()}

    async def do_close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Close a session; an unknown one is closed already."""
        session = self.sessions.pop(request["session"], None)
        if session is not None:
            await session.close()
        return {}


async def main(path: str) -> None:
    """Connect to the host's socket at `path`, read what it asks for, serve until the connection ends."""
    reader, writer = await asyncio.open_unix_connection(path)
    told = await frames.read(reader, 65_536)
    limits = Limits(**told["limits"])
    sandbox = ForkSandbox(limits=limits, **told["options"])
    hello: dict[str, Any] = {"protocol": frames.PROTOCOL}
    try:
        # The first session starts the fork server, so that what cannot work here is said before anyone waits for it.
        await (await sandbox.open()).close()
        hello |= {"isolation": sandbox.isolation, "claims": sorted(sandbox.claims)}
    except (SandboxError, UserError) as error:
        hello["failed"] = str(error)
    writer.write(frames.pack(hello))
    try:
        await SessionServer(sandbox, writer).serve(reader)
    finally:
        await sandbox.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
