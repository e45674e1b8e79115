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
    for _ in range(100):  # what has been killed may still be leaving
        if (seen := (await session.run(count)).result) == before.result:
            break
    assert seen == before.result


async def test_old_snapshots_do_not_pile_up(session: ForkSession) -> None:
    count = "import glob\nlen(glob.glob('/proc/[0-9]*'))"  # process 1, keeper, snapshot, runner
    for _ in range(20):
        await session.run("pass")
    for _ in range(100):  # the last one may still be leaving
        if (seen := (await session.run(count)).result) == "4":
            break
    assert seen == "4"


@pytest.mark.parametrize(
    ("before", "code", "result"),
    [
        (  # a pool, whose threads a fork would not have
            "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\nx = pool.submit(int)",
            "pool.submit(pow, 2, 5).result(timeout=5)",
            "32",
        ),
        (
            "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'raise SystemExit(3)'])",
            "child.wait()",
            "3",
        ),
        ("f = open('log', 'w')\nx = f.write('once')", "f.close()\nopen('log').read()", "'once'"),
        (
            "import sqlite3\ndb = sqlite3.connect('d.db')\nx = db.execute('create table t (n)')\n"
            "x = db.execute('insert into t values (1)')",
            "db.commit()\ndb.execute('select n from t').fetchall()",
            "[(1,)]",
        ),
        (
            "block = bytearray(150 << 20)",
            "for n in range(0, len(block), 4096):\n    block[n] = 1\nlen(block) >> 20",
            "150",
        ),
    ],
    ids=["threads", "child", "file", "database", "memory"],
)
async def test_what_a_fork_cannot_copy_is_not_forked_away_from(
    session: ForkSession, before: str, code: str, result: str
) -> None:
    assert (await session.run(before)).ok
    seen = await session.run(code, timeout=20)
    assert (seen.status, seen.result) == ("ok", result)
    assert (await session.run("6 * 7")).result == "42"


async def test_without_a_snapshot_a_time_out_interrupts_and_a_crash_loses_the_state(session: ForkSession) -> None:
    for _ in range(5):
        await session.run("x = [1]\nf = open('log', 'w')")
        seen = await session.run("x.append(2)\nwhile True:\n    pass", timeout=0.5)
        assert seen.status == "timeout"
        if seen.state_kept:  # on a loaded machine the interrupt may come too late
            break
    assert (await session.run("x")).result == "[1, 2]"
    seen = await session.run("import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True:\n    pass", timeout=0.5)
    assert (seen.status, seen.state_kept) == ("timeout", False)
    await session.run("x = [1]\nf = open('log', 'w')")
    seen = await session.run("import os\nos.abort()")
    assert (seen.status, seen.state_kept) == ("killed", False)
    await session.run("x = [1]")
    assert (await session.run("x.append(2)\nimport os\nos._exit(1)")).state_kept
    assert (await session.run("x")).result == "[1]"


async def test_a_call_without_room_for_both_copies_is_told_so(session: ForkSession) -> None:
    """256 MB: 90 MB are copied, so that a call may take 76 MB more."""
    await session.run("block = bytearray(90 << 20)\nx = 1")
    assert (await session.run("for n in range(0, len(block), 4096):\n    block[n] = 1\nmore = bytearray(40 << 20)")).ok
    await session.run("del more")
    seen = await session.run("x = 2\nmore = bytearray(120 << 20)")
    assert (seen.status, seen.state_kept) == ("memory", True)
    assert (await session.run("x, len(block) >> 20")).result == "(2, 90)"
