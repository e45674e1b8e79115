"""A fork sandbox of the strongest tier. Where that cannot be had the tests skip for a developer and fail in CI."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from solostream.sandbox.fork import ForkSandbox, ForkSession
from solostream.sandbox.fork.server import probe
from solostream.sandbox.types import Execution, Limits

LIMITS = Limits(timeout_s=20, memory_mb=256, processes=32, disk_mb=16, open_files=128, output_bytes=4096)


def need(tier: str) -> None:
    try:
        probe(tier)
    except ValueError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs the tier '{tier}': {error}")
        pytest.skip(f"this machine does not grant the tier '{tier}': {error}")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def interrupted(session: ForkSession, setup: str, code: str) -> Execution:
    """A call that SIGINT ended. On a loaded machine the 300 ms until SIGKILL may be too short: then once more."""
    for _ in range(8):
        assert (await session.run(setup)).ok
        seen = await session.run(code, timeout=0.3)
        assert seen.status == "timeout"
        if seen.state_kept:
            break
    return seen


@pytest.fixture
async def sandbox() -> AsyncIterator[ForkSandbox]:
    """Without numpy and sympy, which the tests that use this do not need: it starts in 0.2 s."""
    need("namespaces")
    box = ForkSandbox(limits=LIMITS, isolation="namespaces", preimport=(), pool=2)
    yield box
    await box.close()
