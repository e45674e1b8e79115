"""The sessions API: state, errors, limits, the token, the queue, and what a client leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import httpx

from solostream.sandbox.conformance import host

JSON = {"content-type": "application/json"}
TAG = "import ctypes\nctypes.CDLL(None).prctl(15, b'{}')\n"


def opened(url: str, **body: str) -> str:
    return httpx.post(f"{url}/sessions", json=body, timeout=30).raise_for_status().json()["id"]


def ran(url: str, number: str, code: str, **body: float) -> httpx.Response:
    return httpx.post(f"{url}/sessions/{number}/run", json={"code": code, **body}, timeout=60)


async def vanishes(tag: str) -> bool:
    return not await host.settle(lambda: host.tagged(tag), 10)


async def runs(tag: str, count: int = 1) -> bool:
    """Whether code that begins with the tag has begun, in so many sessions."""
    return not await host.settle(lambda: len(host.tagged(tag)) < count, 30)


def test_a_session_keeps_state_until_it_is_deleted(server: str) -> None:
    number = opened(server)
    assert ran(server, number, "x = 40").json()["status"] == "ok"
    seen = ran(server, number, "print('p')\nx + 2").json()
    assert (seen["stdout"], seen["result"], seen["error"], seen["state_kept"]) == ("p\n", "42", None, True)
    assert httpx.delete(f"{server}/sessions/{number}").status_code == 204
    assert httpx.delete(f"{server}/sessions/{number}").status_code == 204
    gone = ran(server, number, "x")
    assert gone.status_code == 404
    assert number in gone.json()["detail"]


def test_bad_requests_are_told_in_one_line(server: str) -> None:
    number = opened(server)
    for content, status, words in (
        (b"{", 422, "not JSON"),
        (b"\xff\xfe", 422, "not JSON"),
        (b"[1]", 422, "must be a JSON object"),
        (b'{"code": 5}', 422, '{"code": string'),
        (b'{"code": "1", "timeout": "soon"}', 422, "seconds or null"),
        (b'{"code": "1", "timeout": 0}', 422, "more than 0 and at most 600 s"),
        (b'{"code": "1", "timeout": 601}', 422, "more than 0 and at most 600 s"),
        (b'{"code": "1", "timeout": NaN}', 422, "more than 0 and at most 600 s"),
    ):
        answer = httpx.post(f"{server}/sessions/{number}/run", content=content, headers=JSON)
        assert answer.status_code == status, content
        assert words in answer.json()["detail"]
        assert "\n" not in answer.json()["detail"]


def test_bodies_over_the_limit_are_refused_announced_or_chunked(server: str) -> None:
    number = opened(server)
    block = b"x" * (1 << 20)

    def chunks():
        for _ in range(6):
            yield block

    announced = httpx.post(f"{server}/sessions/{number}/run", content=b"x" * (5 << 20))
    assert announced.status_code == 413
    try:
        chunked = httpx.post(f"{server}/sessions/{number}/run", content=chunks()).status_code
    except httpx.WriteError:  # the server may hang up before the rest is sent
        chunked = 413
    assert chunked == 413
    assert ran(server, number, "6 * 7").json()["result"] == "42"


def test_only_the_token_opens(start, tmp_path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    url, _ = start("--token-file", str(file))
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/v1/ping").json() == "pong"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}, {"authorization": "Bearer"}):
        for method, path in (("POST", "/sessions"), ("POST", "/run_code"), ("GET", "/metrics"), ("GET", "/sandbox")):
            assert httpx.request(method, url + path, headers=headers).status_code == 401
    right = {"authorization": "Bearer s3cret"}
    assert httpx.post(f"{url}/sessions", headers=right).status_code == 201
    secret = {"code": "import os\nprint(os.environ)\nprint(open('/proc/1/environ').read())"}
    assert "s3cret" not in httpx.post(f"{url}/run_code", headers=right, json=secret).text


def test_a_full_house_and_an_idle_guest(start) -> None:
    url, _ = start("--sessions", "2", "--idle", "1.5")
    opened(url), opened(url)
    full = httpx.post(f"{url}/sessions")
    assert full.status_code == 503
    assert int(full.headers["retry-after"]) >= 1
    deadline = time.monotonic() + 15
    while (again := httpx.post(f"{url}/sessions")).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert again.status_code == 201  # the idle ones were closed
    assert "solostream_sessions_expired_total 2.0" in httpx.get(f"{url}/metrics").text


async def test_the_queue_is_bounded_in_length_and_in_time(start) -> None:
    url, _ = start("--running", "1", "--queue", "1", "--queue-timeout", "1")
    numbers = [opened(url) for _ in range(3)]
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:

        async def sleep(number: str, tag: str = "") -> httpx.Response:
            body = {"code": TAG.format(tag) + "import time\ntime.sleep(5)", "timeout": 20}
            return await client.post(f"/sessions/{number}/run", json=body)

        first = asyncio.create_task(sleep(numbers[0], f"q1-{os.getpid()}"))
        assert await runs(f"q1-{os.getpid()}")
        others = await asyncio.gather(*map(sleep, numbers[1:]))  # one waits, the other finds no room
        assert sorted(answer.status_code for answer in others) == [503, 504]
        assert [answer.headers["retry-after"] for answer in others] == ["1", "1"]
        assert (await first).status_code == 200
        busy = asyncio.create_task(sleep(numbers[0], f"q2-{os.getpid()}"))
        assert await runs(f"q2-{os.getpid()}")
        fusion = await client.post("/run_code", json={"code": "1"})
        assert (fusion.status_code, fusion.headers["retry-after"]) == (504, "1")  # all that verl's client retries
        assert (await busy).status_code == 200
        text = (await client.get("/metrics")).text
    assert 'solostream_refused_total{reason="queue_full"} 1.0' in text
    assert 'solostream_refused_total{reason="queue_timeout"} 2.0' in text
    assert 'solostream_runs_total{status="ok"} 2.0' in text


async def test_a_client_that_hangs_up_ends_its_call(server: str) -> None:
    tag = f"hangup{os.getpid()}"
    number = opened(server)
    body = httpx.Request("POST", "http://x", json={"code": TAG.format(tag) + "import time\ntime.sleep(60)"}).read()
    head = f"POST /sessions/{number}/run HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head = f"{head}content-length: {len(body)}\r\n\r\n".encode()
    address = httpx.URL(server)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head + body)
        assert await host.settle(lambda: not host.tagged(tag), 10) is False
    assert await vanishes(tag)
    assert ran(server, number, "1").status_code == 404


async def test_shutdown_is_graceful_and_leaves_nothing(start) -> None:
    url, process = start()
    tag = f"shutdown{os.getpid()}"
    number = opened(url)
    ran(url, number, TAG.format(tag))
    below = set(host.descendants(process.pid)) | set(host.tagged(tag))
    assert host.tagged(tag)
    async with httpx.AsyncClient(timeout=30) as client:
        begun = f"begun{os.getpid()}"
        body = {"code": TAG.format(begun) + "import time\ntime.sleep(1.5)\nprint('finished')", "timeout": 10}
        call = asyncio.create_task(client.post(f"{url}/sessions/{number}/run", json=body))
        assert await runs(begun)
        process.send_signal(signal.SIGTERM)
        assert (await call).json()["stdout"] == "finished\n"
    assert await asyncio.to_thread(process.wait, 20) == 0
    assert await vanishes(begun)
    assert not await host.settle(lambda: [pid for pid in below if os.path.exists(f"/proc/{pid}")], 10)


def test_several_workers_share_one_port_and_every_session(start) -> None:
    url, process = start("--workers", "2")
    numbers = []
    while len({number[0] for number in numbers}) < 2 and len(numbers) < 200:
        numbers.append(opened(url))  # a new connection each time: any worker may get it
    assert {number[0] for number in numbers} == {"0", "1"}
    for value, number in enumerate(numbers):
        ran(url, number, f"x = {value}")
    for value, number in enumerate(numbers):
        for _ in range(4):
            assert ran(url, number, "x").json()["result"] == str(value)
    runs = f'solostream_runs_total{{status="ok"}} {5.0 * len(numbers)}'
    assert runs in httpx.get(f"{url}/metrics").text
    assert f"solostream_sessions {float(len(numbers))}" in httpx.get(f"{url}/metrics").text
    worker = next(pid for pid in host.descendants(process.pid) if _parent(pid) == process.pid)
    os.kill(worker, signal.SIGKILL)
    time.sleep(1)
    lost = [number for number in numbers if ran(url, number, "x").status_code == 404]
    kept = [number for number in numbers if ran(url, number, "x").status_code == 200]
    assert lost
    assert kept
    assert len({number[0] for number in lost}) == len({number[0] for number in kept}) == 1
    assert httpx.delete(f"{url}/sessions/{kept[0]}").status_code == 204


async def test_workers_do_not_outlive_a_killed_supervisor(start) -> None:
    url, process = start("--workers", "2")
    opened(url)
    below = set(host.descendants(process.pid))
    process.kill()
    process.wait()
    assert not await host.settle(lambda: [pid for pid in below if os.path.exists(f"/proc/{pid}")], 15)


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def test_a_port_in_use_and_other_bad_options_are_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, words in (
            (["--port", port], f"cannot listen on 127.0.0.1:{port}"),
            (["--port", "0", "--sandbox", "forkk"], "did you mean 'fork'?"),
            (["--port", "0", "--workers", "0"], "--workers is at least 1"),
            (["--port", "0", "--token-file", "/nonexistent"], "cannot read --token-file"),
        ):
            command = [sys.executable, "-m", "solostream", "sandbox", "serve", *options]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 2
            assert words in done.stderr
            assert "Traceback" not in done.stderr
