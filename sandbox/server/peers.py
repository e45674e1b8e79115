"""The other workers behind the same port.

A session lives in the worker that opened it, whose name starts its id. The kernel hands a connection to any worker; one
that gets a call for a session elsewhere passes it on over that worker's Unix socket, and hangs up there when its own
client does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp
from fastapi import Request
from fastapi.responses import Response

from solostream.errors import SandboxError
from solostream.sandbox.server.sessions import Gone

_JSON = {"content-type": "application/json"}


@dataclass(slots=True)
class Peers:
    """This worker's name, and the sockets of the others by theirs."""

    name: str = "0"
    sockets: dict[str, str] = field(default_factory=dict)
    token: str = ""
    _clients: dict[str, aiohttp.ClientSession] = field(default_factory=dict)

    def elsewhere(self, number: str) -> bool:
        """Whether session `number` lives in another worker: its name starts the number."""
        return number.partition("-")[0] in self.sockets

    async def forward(self, request: Request) -> Response:
        """The owner's answer to the request. Raises Gone when the owner died, and its sessions with it."""
        owner = request.path_params["number"].partition("-")[0]
        try:
            call = self._client(owner).request(
                request.method, request.url.path, data=await request.body(), headers=_JSON
            )
            async with call as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Gone(f"the worker of this session is gone ({type(error).__name__}); open another") from error
        kept = {name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers}
        return Response(content, answer.status, headers=kept)

    async def has_lease(self, lease: str) -> bool:
        """Whether the worker that gave it still holds it; one that does not answer has none."""
        try:
            async with self._client(lease.partition("-")[0]).get(f"/leases/{lease}") as answer:
                return answer.status == 204
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def end_lease(self, lease: str) -> None:
        """Tell everyone; a worker that does not answer has no sessions to close."""
        calls = [self._end_lease(name, lease) for name in self.sockets]
        await asyncio.gather(*calls, return_exceptions=True)

    async def _end_lease(self, name: str, lease: str) -> None:
        async with self._client(name).delete(f"/leases/{lease}"):
            return

    def _client(self, name: str) -> aiohttp.ClientSession:
        if name not in self._clients:
            if name not in self.sockets:
                raise SandboxError(f"no worker {name}")
            self._clients[name] = aiohttp.ClientSession(
                "http://worker",
                connector=aiohttp.UnixConnector(self.sockets[name], limit=0),
                headers={"authorization": f"Bearer {self.token}"} if self.token else {},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),  # the owner keeps the clock of the call
            )
        return self._clients[name]

    async def close(self) -> None:
        """Close the connections to the other workers."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))
