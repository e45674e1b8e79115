"""The `docker` backend: a fork server in a container, many sessions in one.

The container is the outer boundary (see `hardening`); inside, each session has its own namespaces, Landlock and
seccomp, as with the `fork` backend. One container serves one `DockerSandbox`: use one object for each party that must
not meet another. The host listens on a Unix socket in a folder that is mounted read-only, takes exactly one connection,
made before any session exists, and removes the folder: the two sides share nothing but that connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from solostream.errors import SandboxError, UserError
from solostream.sandbox.docker import frames, hardening
from solostream.sandbox.docker.connection import connect
from solostream.sandbox.docker.daemon import Daemon
from solostream.sandbox.docker.hardening import Container
from solostream.sandbox.types import Claim, CodeError, Execution, Limits

log = logging.getLogger("solostream.sandbox.docker")

_WALL: frozenset[Claim] = frozenset(
    {"state", "filesystem", "network", "host", "environment", "orphans"}
)  # whatever is inside
START_S = 60.0  # until the server in a new container greets
_PROCESSES = 4096  # of all sessions together; each has its own limit below that
GRACE_S = 15.0  # beyond a call's time-out, before the host gives up on the container


class RunningContainer:
    """One running container and the connection to the server in it."""

    def __init__(self, daemon: Daemon, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.daemon = daemon
        self.name = name
        self.isolation = ""
        self.claims = _WALL
        self.opened = 0  # sessions, ever
        self.live = 0
        self.broken: str | None = None
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asked = 0
        self._listener: asyncio.Task[None] | None = None

    async def greet(self, limits: Limits, options: dict[str, Any]) -> None:
        """Tell the limits and the fork server's options, hear what isolation works inside. Raises SandboxError."""
        self._writer.write(frames.pack({"limits": asdict(limits), "options": options}))
        try:
            hello = await asyncio.wait_for(frames.read(self._reader, 65_536), START_S)
        except (TimeoutError, asyncio.IncompleteReadError, frames.BadFrame) as error:
            raise SandboxError(f"the server in the container does not greet: {type(error).__name__}") from None
        if hello.get("protocol") != frames.PROTOCOL:
            raise SandboxError("the image is of another version; build it again: scripts/build-image-offline.sh")
        if hello.get("failed"):
            raise SandboxError(f"no session opens in the container: {str(hello['failed'])[:500]}")
        self.isolation = f"container+{str(hello.get('isolation'))[:100]}"
        said = hello.get("claims")
        self.claims = _WALL | {claim for claim in get_args(Claim) if isinstance(said, list) and claim in said}
        lacking = sorted(set(get_args(Claim)) - self.claims - {"fork"})
        if lacking:
            log.warning(
                "ISOLATION INSIDE THE CONTAINER IS WEAK (%s): sessions do not hold %s; allow user namespaces on the "
                "host, or keep sessions apart with recycle_after=1, a container for each",
                self.isolation,
                ", ".join(lacking),
            )
        self._listener = asyncio.create_task(self._listen(frames.reply_bytes(limits)))

    async def call(self, patience: float, **request: Any) -> dict[str, Any]:
        """One request and its reply. Raises SandboxError; a reply that is late or malformed ends the container."""
        if self.broken:
            raise SandboxError(self.broken)
        self._asked += 1
        number = self._asked
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frames.pack({"id": number, **request}))
            answer: dict[str, Any] = await asyncio.wait_for(reply, patience)
        except TimeoutError:
            await self.end(f"the container gave no answer within {patience:.0f} s")
            raise SandboxError(self.broken) from None
        except ConnectionError:
            await self.end("the connection to the container is lost")
            raise SandboxError(self.broken) from None
        finally:
            self._waiting.pop(number, None)
        if "failed" in answer:
            raise SandboxError(str(answer["failed"])[:500])
        return answer

    async def end(self, why: str) -> None:
        """Remove the container; whoever still waits for it gets a SandboxError. Idempotent."""
        if self.broken is None:
            self.broken = why
            for reply in self._waiting.values():
                if not reply.done():
                    reply.set_exception(SandboxError(why))
            self._writer.close()
        if self._listener is not None and self._listener is not asyncio.current_task():
            self._listener.cancel()
        await asyncio.to_thread(self.daemon.remove, self.name)

    async def _listen(self, cap: int) -> None:
        try:
            while True:
                frame = await frames.read(self._reader, cap)
                number = frame.get("id")
                if not isinstance(number, int) or not 0 < number <= self._asked:
                    raise frames.BadFrame("an answer to no question")
                reply = self._waiting.get(number)
                if reply is not None and not reply.done():  # else whoever asked has gone
                    reply.set_result(frame)
        except (asyncio.IncompleteReadError, OSError):
            await self.end("the container ended")
        except frames.BadFrame as error:
            await self.end(f"the server in the container broke the protocol: {error}")


async def start_server(daemon: Daemon, limits: Limits, options: dict[str, Any]) -> RunningContainer:
    """Raises SandboxError, with what the container said last."""
    name, connection = await connect(
        daemon,
        "solostream.sandbox.docker.entrypoint",
        security_opt=["no-new-privileges", f"seccomp={hardening.seccomp_profile()}"],
        # A session's own /proc may be mounted only where the container's is whole. What Docker masks is root's to read.
        MaskedPaths=[],
        ReadonlyPaths=[],
    )
    server = RunningContainer(daemon, name, *await asyncio.open_unix_connection(sock=connection))
    try:
        await server.greet(limits, options)
    except BaseException:
        await asyncio.shield(server.end("the server in the container does not greet"))
        raise
    return server


class DockerSandbox:
    """Sessions in a container.

    Args:
        limits: of each session.
        image: the image of the container.
        runtime: Docker's runtime; None is the daemon's default. docs/docker.md says which were tried.
        cpus: of the container; None is all of the machine's.
        container_memory_mb: of all sessions together, their files included.
        snapshot: as with `fork`: a time-out or crash rolls a session back to the state before the call.
        preimport: as with `fork`: modules that every session finds imported.
        recycle_after: sessions that a container opens before a new one takes its place; 1 gives each its own container.

    Raises (on the first `open`): UserError when Docker or the image is missing, SandboxError when no container starts.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        image: str = hardening.IMAGE,
        runtime: str | None = None,
        cpus: float | None = None,
        container_memory_mb: int = 4096,
        snapshot: bool = False,
        preimport: Sequence[str] | None = None,
        recycle_after: int = 1000,
    ) -> None:
        if recycle_after < 1:
            raise UserError(f"recycle_after is {recycle_after}; it must be at least 1")
        self.limits = limits or Limits()
        self.container = Container(image, runtime, container_memory_mb, cpus, processes=_PROCESSES, disk_mb=64)
        self.recycle_after = recycle_after
        self._options = {"snapshot": snapshot} | ({} if preimport is None else {"preimport": list(preimport)})
        self.isolation = "container+namespaces+seccomp+landlock+rlimits"
        # Of the strongest tier, which is what `isolation` says, until a container has told both.
        self.claims: frozenset[Claim] = frozenset(get_args(Claim))
        self._daemon: Daemon | None = None
        self._servers: set[RunningContainer] = set()
        self._current: RunningContainer | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def open(self) -> DockerSession:
        """A session in the container, which is started with the first one. Raises SandboxError, UserError."""
        server = await self._server()
        try:
            answer = await server.call(START_S, op="open")
            number = answer.get("session")
            if not isinstance(number, int):
                raise SandboxError("the server in the container opened a session without a number")
        except BaseException:
            await self._left(server)
            raise
        return DockerSession(self, server, number)

    async def close(self) -> None:
        """Remove the containers and all sessions in them."""
        self._closed = True
        async with self._starting:
            servers, self._servers, self._current = self._servers, set(), None
            await asyncio.gather(*(server.end("the sandbox is closed") for server in servers))
            if self._daemon is not None:
                daemon, self._daemon = self._daemon, None
                await asyncio.to_thread(daemon.close)

    async def _server(self) -> RunningContainer:
        """A server with a place for one session more; the place is taken."""
        async with self._starting:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            server = self._current
            if server is None or server.broken or server.opened >= self.recycle_after:
                if self._daemon is None:
                    self._daemon = await asyncio.to_thread(Daemon, self.container)
                self._servers = {old for old in self._servers if not old.broken}
                server = self._current = await start_server(self._daemon, self.limits, self._options)
                self._servers.add(server)
                self.isolation, self.claims = server.isolation, server.claims
            server.opened += 1
            server.live += 1
            return server

    async def _left(self, server: RunningContainer) -> None:
        """A session is over. The last one of a container that takes no more ends it."""
        server.live -= 1
        if server.live == 0 and (server.opened >= self.recycle_after or server is not self._current):
            self._servers.discard(server)
            await server.end("the container was recycled")


class DockerSession:
    """One interpreter in a container that others may share."""

    def __init__(self, sandbox: DockerSandbox, server: RunningContainer, number: int) -> None:
        self.isolation = server.isolation
        self._sandbox = sandbox
        self._server = server
        self._number = number
        self._turn = asyncio.Lock()  # held here, so that waiting for one's turn is on nobody's clock
        self._closed = False

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """As `Session.run`. Raises SandboxError when the container is gone."""
        seconds = self._sandbox.limits.seconds(timeout)
        if len(code) > frames.CODE_LENGTH:
            message = f"the code has {len(code)} characters, more than {frames.CODE_LENGTH}"
            return Execution(status="error", error=CodeError("ValueError", message, ""))
        async with self._turn:
            if self._closed:
                raise SandboxError("the session is closed")
            answer = await self._server.call(
                seconds + GRACE_S, op="run", session=self._number, code=code, timeout=seconds
            )
        try:
            return frames.execution(answer.get("execution"), self._sandbox.limits)
        except frames.BadFrame as error:
            await self._server.end(f"the server in the container broke the protocol: {error}")
            raise SandboxError(self._server.broken) from None

    async def fork(self) -> DockerSession:
        """A live copy, as with the `fork` backend. Raises SandboxError."""
        async with self._turn:
            if self._closed:
                raise SandboxError("the session is closed")
            answer = await self._server.call(START_S, op="fork", session=self._number)
        number = answer.get("session")
        if not isinstance(number, int):
            raise SandboxError("the server in the container copied a session without a number")
        self._server.live += 1
        return DockerSession(self._sandbox, self._server, number)

    async def close(self) -> None:
        """End the session in the container. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(SandboxError):  # a container that ended took the session with it
            await self._server.call(GRACE_S, op="close", session=self._number)
        await self._sandbox._left(self._server)
