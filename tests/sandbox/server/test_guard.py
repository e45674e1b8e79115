"""What the server refuses, outlives and cleans up: web pages, half requests, made-up leases, clients that hang up."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from solostream.sandbox.conformance import host
from solostream.sandbox.server import connection, fusion
from solostream.sandbox.server.guard import BODIES, Guard
from solostream.sandbox.types import Execution
from tests.sandbox.server.test_fusion import run_code
from tests.sandbox.server.test_server_sessions import JSON, TAG, opened, ran, runs, vanishes


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8080"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "["}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "a]b"}, 403),
        ({"host": "localhost:1"}, 201),
        ({"host": "sandbox"}, 201),
        ({"host": "[::1]:8080"}, 201),
        ({"host": "10.1.2.3"}, 201),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 201),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 201),
    ],
)
def test_a_web_page_cannot_ask_in_its_readers_name(server: str, headers: dict[str, str], status: int) -> None:
    answer = httpx.post(f"{server}/sessions", content=b"{}", headers={**JSON, **headers})
    assert answer.status_code == status
    if status == 201:
        httpx.delete(f"{server}/sessions/{answer.json()['id']}")


def test_with_a_token_the_name_of_the_server_is_free(start, monkeypatch) -> None:
    monkeypatch.setenv("SOLOSTREAM_SANDBOX_TOKEN", "s3cret")
    url, _ = start()
    headers = {"authorization": "Bearer s3cret", "host": "sandbox.example.org", "origin": "https://page.example.org"}
    assert httpx.post(f"{url}/sessions", headers=headers).status_code == 201


def test_many_slow_large_bodies_do_not_fill_the_memory(start) -> None:
    """More than 16 of the largest are not held: who comes then is told so, and is served when they have gone."""
    url, _ = start("--max-body-mb", "1")
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    head = (
        b"POST /sessions HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n"
    )
    slow: list[socket.socket] = []
    answer = b""
    try:
        while not answer and len(slow) < 40:
            slow.append(socket.create_connection(address, timeout=30))
            slow[-1].sendall(head + bytes(1_000_000))
            for one in select.select(slow, [], [], 1)[0] if len(slow) > BODIES else []:
                answer += one.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 "), len(slow)
        assert b"retry-after: 1" in answer
        assert len(slow) > BODIES
    finally:
        for one in slow:
            one.close()
    for _ in range(100):
        if httpx.post(f"{url}/sessions", content=b"{}" + b" " * 900_000, headers=JSON, timeout=30).status_code == 201:
            return
        time.sleep(0.1)
    pytest.fail("the room for bodies is not given back")


def test_deep_json_is_a_bad_request(server: str) -> None:
    for path in ("/sessions", "/run_code", "/run_jupyter"):
        for body in (b"[" * 200_000, b'{"a":' * 100_000):
            answer = httpx.post(server + path, content=body, headers=JSON)
            assert 400 <= answer.status_code < 500, (path, answer.text)
            assert "\n" not in answer.json()["detail"]


async def test_only_a_lease_that_is_open_holds_sessions(start) -> None:
    url, _ = start("--workers", "2")
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        for made_up in ("0-" + "0" * 24, "1-0", "7-123", "x"):
            refused = await client.post("/sessions", json={"lease": made_up})
            assert refused.status_code == 404
            assert "no lease" in refused.json()["detail"]
        assert (await client.post("/sessions", json={"lease": 5})).status_code == 422
        async with client.stream("POST", "/leases") as lease:
            lines = lease.aiter_lines()
            number = (await anext(lines)).split('"')[3]
            numbers = set()
            for _ in range(100):  # new connections: sooner or later each worker opens one
                answer = await asyncio.to_thread(httpx.post, f"{url}/sessions", json={"lease": number}, timeout=30)
                assert answer.status_code == 201
                numbers.add(answer.json()["id"])
                if len({one[0] for one in numbers}) == 2:
                    break
        assert len({one[0] for one in numbers}) == 2
        for one in numbers:
            gone = await host.settle(lambda one=one: ran(url, one, "1").status_code == 200, 10)
            assert not gone
        assert (await client.post("/sessions", json={"lease": number})).status_code == 404


def test_a_client_that_hangs_up_while_a_session_opens_leaves_none(start) -> None:
    """What stays are the sessions whose answer was under way before the client said that it goes.

    An answer that is written in the very turn of the event loop in which that news comes is dropped below us.
    """
    url, _ = start("--idle", "600")
    address = httpx.URL(url)
    head = f"POST /sessions HTTP/1.1\r\nhost: {address.host}\r\ncontent-length: 0\r\n\r\n".encode()
    told = 0
    for number in range(80):
        with socket.create_connection((address.host, address.port), timeout=30) as client:
            client.sendall(head)
            time.sleep(0.0005 * (number % 12))
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(4096), b""))
            told += answer.startswith(b"HTTP/1.1 201")
    assert told < 80
    for _ in range(100):  # one that nobody closes stays for the 600 seconds of --idle
        stayed = float(httpx.get(f"{url}/metrics").text.partition("\nsolostream_sessions ")[2].split()[0])
        if stayed == told:
            break
        time.sleep(0.1)
    assert told <= stayed <= told + 2


async def test_a_request_that_never_ends_is_hung_up_on(monkeypatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    import uvicorn

    async def app(scope, receive, send) -> None:
        body = b"ok"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, http=connection.TimedConnection, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            for beginning, answered in (
                (b"", False),
                (b"GET / HT", False),
                (b"GET / HTTP/1.1\r\nhost: x\r\n", False),
                (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", True),
                (b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP", True),
            ):
                for _ in range(100):
                    try:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                        break
                    except OSError:
                        await asyncio.sleep(0.05)
                writer.write(beginning)
                said = await asyncio.wait_for(reader.read(-1), 8)  # until the server closes it
                assert said.endswith(b"ok") is answered, beginning
                writer.close()
        finally:
            server.should_exit = True
            await serving


async def test_an_answer_that_is_not_read_is_hung_up_on(monkeypatch) -> None:
    """A client that reads nothing is closed; one that reads slowly gets all of it."""
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    import uvicorn

    size = 24 << 20  # far more than the kernel buffers of a connection

    async def app(scope, receive, send) -> None:
        head = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": bytes(size)})

    server = uvicorn.Server(uvicorn.Config(app, http=connection.TimedConnection, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            for _ in range(200):
                if server.started:
                    break
                await asyncio.sleep(0.05)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            for _ in range(200):
                await asyncio.sleep(0.05)
                if not server.server_state.connections:
                    break
            assert not server.server_state.connections
            writer.close()
            monkeypatch.setattr(connection, "HEAD_S", 60)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            got = 0
            while piece := await reader.read(4 << 20):
                got += len(piece)
                await asyncio.sleep(0.002)
            assert got > size
            writer.close()
        finally:
            server.should_exit = True
            await serving


async def test_a_body_that_does_not_arrive_is_given_up(monkeypatch) -> None:
    from solostream.sandbox.server import guard

    monkeypatch.setattr(guard, "BODY_S", 0.2)
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/run_code", "headers": [(b"host", b"localhost"), (b"content-length", b"9")]}
    await Guard(None, "", 100, "127.0.0.1", lambda: False)(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 408


async def test_shutdown_under_load_answers_503_in_one_line_each(start) -> None:
    url, process = start()
    begun = f"begun{os.getpid()}"
    numbers = [opened(url) for _ in range(6)]
    async with httpx.AsyncClient(timeout=60) as client:
        body = {"code": TAG.format(begun) + "import time\ntime.sleep(50)", "timeout": 55}
        calls = [asyncio.create_task(client.post(f"{url}/sessions/{n}/run", json=body)) for n in numbers]
        calls += [asyncio.create_task(client.post(f"{url}/run_code", json={"code": body["code"], "run_timeout": 55}))]
        assert await runs(begun, 7)
        process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [503] * 7
    assert answers[0].json() == {"detail": "the server shuts down; the call was ended"}
    assert await asyncio.to_thread(process.wait, 20) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert await vanishes(begun)


def test_workers_end_without_a_fatal_error() -> None:
    command = [sys.executable, "-m", "solostream", "sandbox", "serve", "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = process.stderr.readline().split(" at ")[1].split(",")[0]
    for _ in range(4):
        httpx.get(f"{url}/health", timeout=60)
    process.terminate()
    rest = process.stderr.read()
    assert process.wait(30) == 0
    assert "Fatal" not in rest
    assert rest == ""


@pytest.mark.parametrize(
    "made_up",
    ["'" + "[]," * 300_000 + "'", "[" * 900_000, "-" * 1_000_000 + "1", "'" + "QUJD" * 10 + "\\n'", "''", "", "'", "5"],
)
def test_what_a_session_says_of_a_file_is_read_in_one_pass(made_up: str) -> None:
    assert fusion._decoded(Execution(result=made_up)) in (None, b"")  # parsing it took 5 s and 400 MB


def test_a_session_cannot_hold_the_server_by_its_files(server: str) -> None:
    """Each part of a file takes its time: all of them together have one clock."""
    code = (
        "import base64, time\nreal = base64.b64encode\nbase64.b64encode = lambda data: time.sleep(0.7) or real(data)\n"
    )
    code += "for n in range(40):\n    open(f'{n}', 'w').write('x')"
    seen = run_code(server, code, run_timeout=2, fetch_files=[str(n) for n in range(40)])
    assert seen["message"].startswith("fetch_files took more than 10 s: ")
    assert 1 <= len(seen["files"]) < 20


@pytest.mark.parametrize(
    ("option", "value"),
    [("--idle", "nan"), ("--max-timeout", "0"), ("--queue-timeout", "-1"), ("--max-body-mb", "inf")],
)
def test_odd_numbers_are_refused(option: str, value: str) -> None:
    command = [sys.executable, "-m", "solostream", "sandbox", "serve", "--port", "0", option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, f"{option} is more than 0 and finite" in done.stderr) == (2, True)


def test_odd_limits_are_refused() -> None:
    for value in ("0", "-5"):
        command = [sys.executable, "-m", "solostream", "sandbox", "serve", "--port", "0", "--limits.disk-mb", value]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert f"disk_mb={value}" in done.stderr
        assert "Traceback" not in done.stderr
