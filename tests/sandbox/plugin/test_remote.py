"""The example of a remote provider, against a server of its API that keeps real interpreters."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web

from solostream.errors import SandboxError, UserError
from solostream.sandbox.conformance import LIMITS, check
from solostream.sandbox.fork import ForkSandbox, ForkSession
from tests.sandbox.fork.conftest import need

KEY = "key-7f"
EXAMPLE = Path(__file__).parents[3] / "examples" / "solostream-remote" / "solostream_remote.py"


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("solostream_remote", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Provider:
    """The API, as a provider would answer it. `broken`: what it answers instead, if anything."""

    def __init__(self) -> None:
        # A provider keeps more output than this client asks for, so that the client is the one that cuts.
        self.box = ForkSandbox(limits=replace(LIMITS, output_bytes=1 << 20), preimport=(), pool=2)
        self.sessions: dict[str, ForkSession] = {}
        self.broken: web.Response | None = None
        self.made = 0

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return web.Response(status=401, text="who are you")
        if self.broken is not None:
            return self.broken
        number = request.match_info.get("number")
        if number is None:
            self.made += 1
            number = f"s{self.made}"
            self.sessions[number] = await self.box.open()
            return web.json_response({"id": number})
        if number not in self.sessions:
            return web.Response(status=404, text="no such sandbox")
        if request.method == "DELETE":
            await self.sessions.pop(number).close()
            return web.Response(status=204)
        asked = await request.json()
        seen = await self.sessions[number].run(asked["code"], timeout=asked["timeout_s"])
        error = seen.error and {
            "name": seen.error.name,
            "message": seen.error.message,
            "traceback": seen.error.traceback,
        }
        told = {"stdout": seen.stdout, "stderr": seen.stderr, "result": seen.result, "error": error}
        return web.json_response({**told, "alive": seen.state_kept})


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[tuple[Provider, str]]:
    its = Provider()
    app = web.Application()
    app.router.add_post("/sandboxes", its.answer)
    app.router.add_post("/sandboxes/{number}/execute", its.answer)
    app.router.add_delete("/sandboxes/{number}", its.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield its, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        await its.box.close()


async def test_the_suite_holds_for_what_it_claims() -> None:
    need("namespaces")
    async with provider() as (_, url):
        box = example().RemoteSandbox
        only = (
            "variables, functions and imports",
            "the result is the repr",
            "an exception has name",
            "unicode goes in",
        )
        only += ("a time-out ends the call", "output over the limit", "close is idempotent", "session N+1")
        report = await check(lambda: box(url=url, key=KEY, limits=LIMITS), name="remote", only=only)
    assert [(case.name, case.detail) for case in report.failed if case.group != "after"] == []
    assert sum(case.status == "pass" for case in report.cases) >= 7


async def test_what_the_provider_does_is_a_sandbox_error_and_never_an_execution() -> None:
    need("namespaces")
    async with provider() as (its, url):
        box = example().RemoteSandbox(url=url, key=KEY)
        session = await box.open()
        assert (await session.run("x = 6; x * 7")).result == "42"
        for broken, words in (
            (web.Response(status=503, text="busy"), "503: busy"),
            (web.Response(text="<html>", content_type="text/html"), "cannot be asked"),
        ):
            its.broken = broken
            with pytest.raises(SandboxError, match=words):
                await session.run("1")
        its.broken = None
        assert (await session.run("x")).result == "6"
        await box.close()
        assert its.sessions == {}
        stranger = example().RemoteSandbox(url=url, key="wrong")
        with pytest.raises(SandboxError, match="401"):
            await stranger.open()
        await stranger.close()
    with pytest.raises(UserError, match="REMOTE_API_KEY"):
        example().RemoteSandbox(url=url)


async def test_a_provider_that_is_not_there() -> None:
    box = example().RemoteSandbox(url="http://127.0.0.1:9", key=KEY)
    with pytest.raises(SandboxError, match="cannot be asked"):
        await asyncio.wait_for(box.open(), 20)
    await box.close()
