"""Asking a server: its mistakes are told apart from ours."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import aiohttp

from solostream.agent.engine import EngineError
from solostream.agent.engines.api_key import HINT, api_key
from solostream.errors import UserError

RETRIES = 4  # of a request, with 0.25, 0.5, 1 and 2 s between them


class Answer(NamedTuple):
    """What a server answered: the HTTP status and the body as text."""

    status: int
    text: str

    def json(self) -> Any:
        """The body, parsed. Raises ValueError where it is no JSON."""
        return json.loads(self.text)

    def reason(self) -> str:
        """What the server says is wrong, in one line."""
        try:
            record = self.json()
            record = record.get("error", record)
            text = record.get("message", record) if isinstance(record, dict) else record
        except (ValueError, AttributeError):
            text = self.text
        return " ".join(str(text).split())[:300]


def open_client(connections: int, timeout_s: float, key: str | None = None) -> aiohttp.ClientSession:
    """For the running event loop. timeout_s: between two bytes of an answer; waiting for a connection has no limit.

    key: the environment variable that holds the key, where it is not the usual one. Raises UserError.
    """
    secret = api_key(key)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        headers={"Authorization": f"Bearer {secret}"} if secret else {},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=timeout_s),
        trust_env=True,
    )


async def ask(
    client: aiohttp.ClientSession,
    method: str,
    url: str,
    body: dict[str, Any] | None = None,
    patience_s: float | None = None,
) -> Answer:
    """Raises EngineError when no answer comes. patience_s: in all; None: as the client has it."""
    timeout = client.timeout if patience_s is None else aiohttp.ClientTimeout(total=patience_s)
    try:
        async with client.request(method, url, json=body, timeout=timeout) as answer:
            return Answer(answer.status, await answer.text("utf-8", "replace"))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"{url}: {type(error).__name__} {error}") from error


async def post(client: aiohttp.ClientSession, url: str, body: dict[str, Any], missing: str = "") -> dict[str, Any]:
    """The JSON answer. Raises UserError when the request is at fault, EngineError when the server is.

    missing: the remedy where the server has no such address.
    """
    answer = await ask(client, "POST", url, body)
    if answer.status == 404 and missing:
        raise UserError(f"{url} does not exist: {missing}")
    if answer.status in (401, 403):
        raise UserError(f"{url} refuses the key ({answer.status}): {answer.reason()}; {HINT}")
    if answer.status in (400, 404, 422):
        raise UserError(f"{url} refuses the request ({answer.status}): {answer.reason()}")
    if answer.status >= 300:
        raise EngineError(f"{url} answered {answer.status}: {answer.reason()}")
    try:
        return answer.json() if answer.text else {}
    except ValueError:
        raise EngineError(f"{url} answered no JSON: {answer.reason()}") from None
