"""The other workers behind the same port.

A session lives in the worker that opened it, whose name starts its id. The kernel hands a connection to any worker; one
that gets a call for a session elsewhere passes it on over that worker's Unix socket, and hangs up there when its own
client does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import httpx
from fastapi import Request
from fastapi.responses import Response

from sandbox.errors import SandboxError
from sandbox.server.sessions import Gone


@dataclass(slots=True)
class Peers:
    """This worker's name, and the sockets of the others by theirs."""

    name: str = "0"
    sockets: dict[str, str] = field(default_factory=dict)
    token: str = ""
    _clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)

    def elsewhere(self, number: str) -> bool:
        return number.partition("-")[0] in self.sockets

    async def forward(self, request: Request) -> Response:
        """The owner's answer to the request. Raises Gone when the owner died, and its sessions with it."""
        owner = request.path_params["number"].partition("-")[0]
        try:
            answer = await self._client(owner).request(
                request.method, request.url.path, content=await request.body(), headers=self._headers()
            )
        except httpx.HTTPError as error:
            raise Gone(f"the worker of this session is gone ({type(error).__name__}); open another") from error
        kept = {name: answer.headers[name] for name in ("content-type", "retry-after") if name in answer.headers}
        return Response(answer.content, answer.status_code, headers=kept)

    async def end_lease(self, lease: str) -> None:
        """Tell everyone; a worker that does not answer has no sessions to close."""
        calls = [self._client(name).delete(f"/leases/{lease}", headers=self._headers()) for name in self.sockets]
        await asyncio.gather(*calls, return_exceptions=True)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def _client(self, name: str) -> httpx.AsyncClient:
        if name not in self._clients:
            if name not in self.sockets:
                raise SandboxError(f"no worker {name}")
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            transport = httpx.AsyncHTTPTransport(uds=self.sockets[name], limits=limits)
            timeout = httpx.Timeout(None, connect=5)  # the owner keeps the clock of the call
            self._clients[name] = httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=timeout)
        return self._clients[name]

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))
