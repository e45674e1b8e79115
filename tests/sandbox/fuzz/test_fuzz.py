"""Random calls and random bytes against the boundary, for a bounded time; every run draws its own seed and names it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.fuzz_sandbox import LIMITS, fuzz
from solostream.sandbox.docker import frames
from solostream.sandbox.fork import ForkSandbox
from tests.sandbox.fork.conftest import need
from tests.sandbox.server.conftest import serving

SECONDS = float(os.environ.get("SOLOSTREAM_FUZZ_S", 10))  # for each of the tests below


@pytest.mark.parametrize("tier", ["namespaces", "landlock"])
async def test_the_host_and_a_bystander_live_through_random_calls_and_frames(tier: str) -> None:
    need(tier)
    box = ForkSandbox(limits=LIMITS, isolation=tier, preimport=())
    try:
        made, played = await fuzz(
            box, seed=random.randrange(1 << 40), calls=1 << 60, seconds=SECONDS, rounds=1 << 60, jobs=4
        )
    finally:
        await box.close()
    assert played >= 4
    assert made > 1000


def _damaged(draw: random.Random, text: bytes) -> bytes:
    """A copy with some bytes changed, cut out or put in."""
    damaged = bytearray(text)
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(damaged) + 1)
        damaged[at : at + draw.choice((0, 0, 1, 4))] = draw.randbytes(draw.choice((0, 1, 1, 4, 40)))
    return bytes(damaged)


async def test_frames_of_a_container_end_in_a_frame_or_a_refusal() -> None:
    seed = random.randrange(1 << 40)
    draw = random.Random(seed)
    record = {"stdout": "x" * 50, "stderr": "", "result": None, "error": None, "status": "ok", "duration_s": 0.5}
    whole = frames.pack({"id": 1, "execution": record, "claims": ["state", 3, None], "deep": [[[[]]]]})
    seen = {"frame": 0, "refused": 0}
    for _ in range(20_000):
        reader = asyncio.StreamReader()
        reader.feed_data(_damaged(draw, whole))
        reader.feed_eof()
        try:
            frame = await frames.read(reader, 4096)
            frames.execution(frame.get("execution"), LIMITS)
            seen["frame"] += 1
        except (frames.BadFrame, asyncio.IncompleteReadError):
            seen["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert min(seen.values()) > 100, seen


def test_the_http_server_lives_through_random_bytes() -> None:
    seed = random.randrange(1 << 40)
    draw = random.Random(seed)
    body = json.dumps({"code": "print(1)", "timeout": 1}).encode()
    request = b"POST /run_code HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(body) + body
    with serving("--idle", "30") as (url, process):
        place = urlsplit(url)
        assert place.hostname is not None
        for turn in range(300):
            with socket.create_connection((place.hostname, place.port or 0), timeout=5) as connection:
                connection.settimeout(0.02)
                try:
                    connection.sendall(
                        draw.randbytes(draw.randrange(3000)) if turn % 3 == 0 else _damaged(draw, request)
                    )
                    connection.recv(4096)
                except OSError:
                    pass  # it hung up, or waits for more
        assert process.poll() is None, f"seed {seed}"
        answer = httpx.post(f"{url}/run_code", json={"code": "print(6 * 7)", "language": "python"}, timeout=60)
        assert answer.json()["run_result"]["stdout"] == "42\n", f"seed {seed}"
