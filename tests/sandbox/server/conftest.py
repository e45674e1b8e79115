"""Real servers, each a process of its own, over the real fork sandbox."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL and the process of `solostream sandbox serve --port 0 ...`, answering; ended by SIGTERM."""
    command = [sys.executable, "-m", "solostream", "sandbox", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+:\d+", line)
        assert found, line + process.stderr.read()
        httpx.get(f"{found[0]}/health", timeout=60)
        yield found[0], process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """One server for the tests that change nothing about it."""
    with serving("--max-body-mb", "4", "--idle", "30") as (url, _):
        yield url


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[str, subprocess.Popen[str]]]]:
    with contextlib.ExitStack() as stack:
        yield lambda *options: stack.enter_context(serving(*options))
