"""snapshot=True: a time-out or a crash leaves the variables as they were before the call."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from solostream.sandbox.fork import ForkSandbox, ForkSession
from tests.sandbox.fork.conftest import LIMITS, need


@pytest.fixture
async def session() -> AsyncIterator[ForkSession]:
    need("namespaces")
    box = ForkSandbox(limits=LIMITS, snapshot=True, preimport=(), pool=1)
    yield await box.open()
    await box.close()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("x.append(2); import os; os._exit(0)", "killed"),
        ("x.append(2); import os; os.kill(os.getpid(), 9)", "killed"),
        ("x.append(2); import ctypes; ctypes.string_at(0)", "killed"),
        ("x.append(2); import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass", "timeout"),
        ("x.append(2); import time; time.sleep(60)", "timeout"),
    ],
)
async def test_rolls_back(session: ForkSession, code: str, status: str) -> None:
    await session.run("x = [1]")
    seen = await session.run(code, timeout=1)
    assert (seen.status, seen.state_kept) == (status, True)
    assert (await session.run("x")).result == "[1]"


async def test_success_and_errors_go_forward(session: ForkSession) -> None:
    await session.run("x = [1]")
    await session.run("x.append(2)")
    await session.run("x.append(3); 1 / 0")
    assert (await session.run("x")).result == "[1, 2, 3]"


async def test_what_a_rolled_back_call_started_is_gone(session: ForkSession) -> None:
    code = "import subprocess, os\nsubprocess.Popen(['/bin/sleep', '1000'], start_new_session=True)\nos._exit(1)"
    count = "import glob\nlen(glob.glob('/proc/[0-9]*'))"
    before = await session.run(count)
    assert (await session.run(code)).status == "killed"
    assert (await session.run(count)).result == before.result


async def test_old_snapshots_do_not_pile_up(session: ForkSession) -> None:
    count = "import glob\nlen(glob.glob('/proc/[0-9]*'))"  # process 1, keeper, snapshot, runner
    for _ in range(20):
        await session.run("pass")
    for _ in range(100):  # the last one may still be leaving
        if (seen := (await session.run(count)).result) == "4":
            break
    assert seen == "4"
