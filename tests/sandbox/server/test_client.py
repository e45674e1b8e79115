"""`HttpSandbox`: our server, a busy one, a dead one, a plain SandboxFusion one."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from solostream.sandbox import SandboxError, UserError, open_sandbox
from solostream.sandbox.conformance import check
from solostream.sandbox.http import HttpSandbox
from solostream.sandbox.types import Limits
from tests.sandbox.server.test_server_sessions import TAG, runs


async def test_it_takes_the_servers_claims_and_limits(server: str) -> None:
    sandbox = open_sandbox(server, limits=Limits(timeout_s=3))
    assert "state" in sandbox.claims
    assert sandbox.isolation.startswith("http: ")
    assert (sandbox.limits.timeout_s, sandbox.limits.output_bytes) == (3, 1 << 20)
    session = await sandbox.open()
    seen = await session.run("import time\ntime.sleep(30)")  # the client's default is sent along
    assert seen.status == "timeout"
    assert 3 <= seen.duration_s < 20
    with pytest.raises(UserError, match="at most 600 s"):
        await session.run("1", timeout=1e6)
    await sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        await session.run("1")
    with pytest.raises(SandboxError, match="closed"):
        await sandbox.open()


async def test_nothing_survives_a_killed_client(server: str) -> None:
    """The suite's own case: a client process dies with one session idle and one in the middle of a call."""
    report = await check(server, only="nothing survives when the owner is killed")
    assert [(case.status, case.detail) for case in report.cases] == [("pass", "")] * 2


async def test_what_a_server_could_break(start) -> None:
    """The groups in which HTTP lies between; what the sandbox behind it holds is tested on the sandbox."""
    url, _ = start()
    report = await check(url, only=("protocol", "stuck", "floods"), jobs=4)
    assert [(case.name, case.detail) for case in report.failed] == []
    assert sum(case.status == "pass" for case in report.cases) > 45


async def test_a_busy_server_is_asked_again_until_patience_ends(start) -> None:
    url, _ = start("--sessions", "1")
    patient, hasty = HttpSandbox(url), HttpSandbox(url, patience_s=0.5)
    first = await patient.open()
    with pytest.raises(SandboxError, match=r"is busy \(1 sessions are open.*for 0.5 s"):
        await hasty.open()
    second = asyncio.create_task(patient.open())
    await asyncio.sleep(0.3)
    assert not second.done()
    await first.close()
    assert (await (await second).run("6 * 7")).result == "42"
    await asyncio.gather(patient.close(), hasty.close())


async def test_closing_the_client_closes_its_sessions(server: str) -> None:
    def live() -> float:
        text = httpx.get(f"{server}/metrics").text
        return float(text.split("\nsolostream_sessions ")[1].split()[0])

    before = live()
    sandbox = HttpSandbox(server)
    sessions = [await sandbox.open() for _ in range(3)]
    assert live() == before + 3
    assert len(sessions) == 3
    await sandbox.close()
    assert live() == before


async def test_a_lost_server_is_a_sandbox_error(start) -> None:
    url, process = start()
    sandbox = HttpSandbox(url, patience_s=0.5)
    session = await sandbox.open()
    tag = f"lost{os.getpid()}"
    call = asyncio.create_task(session.run(TAG.format(tag) + "import time\ntime.sleep(30)", timeout=40))
    assert await runs(tag)
    process.kill()
    with pytest.raises(SandboxError, match="broke off"):
        await call
    with pytest.raises(SandboxError, match=r"cannot be reached|broke off"):
        await session.run("1")
    await session.close()
    await sandbox.close()


def test_wrong_addresses_and_tokens_name_the_remedy(start, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(SandboxError, match="solostream sandbox serve"):
        open_sandbox(f"http://127.0.0.1:{port}")
    url, _ = start("--token", "right")
    with pytest.raises(UserError, match="SOLOSTREAM_SANDBOX_TOKEN"):
        open_sandbox(url, token="wrong")
    monkeypatch.setenv("SOLOSTREAM_SANDBOX_TOKEN", "right")
    assert "state" in open_sandbox(url).claims


@pytest.fixture
def fusion_only():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("fusion_only.py")), str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/v1/ping")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


async def test_a_plain_sandboxfusion_server_is_used_without_state(fusion_only: str) -> None:
    sandbox = open_sandbox(fusion_only)
    assert sandbox.claims == frozenset()
    session = await sandbox.open()
    assert (await session.run("x = 1\nprint('p')")).stdout == "p\n"
    seen = await session.run("import sys\nprint('e', file=sys.stderr)\nx")
    assert seen.error is not None
    assert (seen.status, seen.error.name, seen.stderr) == ("error", "NameError", "e\n")
    assert "name 'x' is not defined" in seen.error.message
    assert "Traceback" in seen.error.traceback
    assert (await session.run("import os\nos.abort()")).status == "killed"
    assert (await session.run("import time\ntime.sleep(9)", timeout=0.5)).status == "timeout"
    assert (await session.run("raise SystemExit(4)")).error.name == "SystemExit"
    await sandbox.close()
    report = await check(fusion_only, only="protocol")
    assert [(case.name, case.detail) for case in report.failed] == []
    assert sum(case.status == "pass" for case in report.cases) >= 14
