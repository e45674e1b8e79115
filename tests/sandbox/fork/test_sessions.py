"""What a fork session does that the conformance suite does not ask of every backend."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from solostream.errors import SandboxError, UserError
from solostream.sandbox.fork import ForkSandbox, cgroup
from solostream.sandbox.fork.child import wire
from tests.sandbox.fork.conftest import LIMITS, interrupted, need, running


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    stack = [pid]
    while stack:
        parent = stack.pop()
        for task in Path(f"/proc/{parent}/task").glob("*"):
            try:
                children = {int(child) for child in (task / "children").read_text().split()}
            except OSError:
                continue
            stack += children - found
            found |= children
    return found


def pid_of(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("Pid:"))[4:])


async def eventually(condition) -> bool:
    for _ in range(500):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return bool(condition())


async def test_a_death_is_told_by_signal_or_exit_code(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    for code, name, message in [
        ("import os; os._exit(0)", "ProcessExit", "the interpreter exited with code 0"),
        ("import os; os._exit(7)", "ProcessExit", "the interpreter exited with code 7"),
        ("import os; os.kill(os.getpid(), 9)", "ProcessKilled", "the interpreter was killed by signal 9 (SIGKILL)"),
        ("import ctypes; ctypes.string_at(0)", "ProcessKilled", "the interpreter was killed by signal 11 (SIGSEGV)"),
        ("import os; os.abort()", "ProcessKilled", "the interpreter was killed by signal 6 (SIGABRT)"),
    ]:
        seen = await session.run(code)
        assert (seen.status, seen.state_kept) == ("killed", False)
        assert seen.error is not None
        assert (seen.error.name, seen.error.message) == (name, message)
    assert (await session.run("6 * 7")).result == "42"


async def test_a_forged_obituary_does_not_hide_a_living_process(sandbox: ForkSandbox) -> None:
    """The session says that it is dead and goes on: it is, afterwards."""
    session = await sandbox.open()
    assert session._process is not None
    pid = pid_of(session._process._pidfd)
    assert running(pid)
    seen = await session.run(
        f"import os, time\nos.write(3, {wire.DEAD + wire.STATUS.pack(0, False)!r})\ntime.sleep(60)"
    )
    assert (seen.status, seen.state_kept) == ("killed", False)
    assert not running(pid)


@pytest.mark.parametrize("frame", [wire.REPLY + bytes(16), b"", b"X" * 400, wire.READY, wire.BACK + bytes(16 + 5)])
async def test_a_frame_that_no_honest_session_sends_ends_the_session(sandbox: ForkSandbox, frame: bytes) -> None:
    session = await sandbox.open()
    seen = await session.run(f"import os, time\nos.write(3, {frame!r})\ntime.sleep(60)")
    assert (seen.status, seen.state_kept) == ("killed", False)
    assert (await session.run("1")).result == "1"


async def test_a_forged_length_is_not_believed(sandbox: ForkSandbox) -> None:
    """The reply claims a result of 4 GB, with the right nonce: a session may lie, within the caps."""
    session = await sandbox.open()
    code = """
import os, struct, sys
frame = sys._getframe()
while "nonce" not in frame.f_locals:
    frame = frame.f_back
os.write(3, b"A" + frame.f_locals["nonce"] + struct.pack("<BIIIII", 1, {length}, 0, 0, 0, 0) + b"f" * {sent})
import time
time.sleep(60)
"""
    seen = await session.run(code.format(length=2**32 - 1, sent=1000))
    assert (seen.status, seen.state_kept, seen.result) == ("killed", False, None)
    seen = await session.run(code.format(length=LIMITS.output_bytes + 1, sent=LIMITS.output_bytes + 1))
    assert seen.result == "f" * LIMITS.output_bytes
    assert seen.result_truncated


async def test_partial_output_survives_the_kill(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('before')\nwhile True: pass"
    seen = await session.run(code, timeout=0.3)
    assert (seen.status, seen.stdout, seen.state_kept) == ("timeout", "before\n", False)


async def test_an_interrupt_keeps_the_state_and_hides_our_frames(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    seen = await interrupted(session, "x = 5", "while True:\n    x += 1")
    assert seen.state_kept
    assert seen.error is not None
    assert seen.error.name == "TimeoutError"
    assert '  File "<cell 2>", line 2, in <module>' in seen.error.traceback or "line 1," in seen.error.traceback
    assert "worker.py" not in seen.error.traceback
    assert (await session.run("x > 5")).result == "True"


async def test_a_syntax_error_shows_the_code_alone(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    for code, files in (("def f(:\n", ['File "<cell 1>", line 1']), ("x = 1\0", [])):
        seen = await session.run(code)
        assert seen.error is not None
        assert [line.strip() for line in seen.error.traceback.splitlines() if "File" in line] == files


async def test_sessions_draw_different_random_numbers(sandbox: ForkSandbox) -> None:
    first, second = await sandbox.open(), await sandbox.open()
    code = "import random\nrandom.random()"
    assert (await first.run(code)).result != (await second.run(code)).result


async def test_the_environment_holds_nothing_of_the_hosts(sandbox: ForkSandbox, monkeypatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    seen = await (await sandbox.open()).run("import os\nsorted(os.environ)")
    assert seen.result is not None
    allowed = {"HOME", "LANG", "MALLOC_ARENA_MAX", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    allowed |= {"PATH", "PWD", "PYTHONDONTWRITEBYTECODE", "PYTHONINTMAXSTRDIGITS", "MPLBACKEND", "TMPDIR", "TZ"}
    assert set(eval(seen.result)) <= allowed


async def test_a_dead_fork_server_is_an_infrastructure_failure_and_is_replaced(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    running = asyncio.create_task(session.run("import time\ntime.sleep(60)", timeout=60))
    await asyncio.sleep(0.3)
    assert sandbox._server is not None
    os.kill(sandbox._server._process.pid, signal.SIGKILL)
    with pytest.raises(SandboxError, match="fork server died"):
        await running
    assert (await (await sandbox.open()).run("1 + 1")).result == "2"
    assert (await session.run("1 + 1")).result == "2"


async def test_more_sessions_than_one_of_them_may_open_files() -> None:
    box = ForkSandbox(limits=replace(LIMITS, open_files=16), preimport=())
    try:
        sessions = [await box.open() for _ in range(30)]
        seen = await asyncio.gather(*(session.run("len(open('/dev/null').name)") for session in sessions))
        assert [one.result for one in seen] == ["9"] * 30
        limited = await sessions[-1].run(
            "try:\n    [open('/dev/null') for _ in range(16)]\nexcept OSError:\n    print('full')"
        )
        assert limited.stdout == "full\n"
    finally:
        await box.close()


async def test_a_cancelled_call_stops_the_code(sandbox: ForkSandbox) -> None:
    session = await sandbox.open()
    await session.run("x = 1")
    running = asyncio.create_task(session.run("import time\ntime.sleep(60)", timeout=60))
    await asyncio.sleep(0.2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    seen = await session.run("x")
    assert seen.error is not None
    assert seen.error.name == "NameError"


async def test_descriptors_and_processes_are_flat(sandbox: ForkSandbox) -> None:
    async def one(number: int) -> None:
        session = await sandbox.open()
        code = {0: "import os; os._exit(1)", 1: "while True: pass"}.get(number % 10, "print(1)")
        await session.run(code, timeout=0.2)
        await session.close()

    await one(2)
    for _ in range(100):  # the pool fills, until nothing is added for a second
        before = len(descendants(os.getpid()))
        await asyncio.sleep(1)
        if len(descendants(os.getpid())) == before:
            break
    fds, processes = len(os.listdir("/proc/self/fd")), len(descendants(os.getpid()))
    await asyncio.gather(*(one(number) for number in range(40)))
    assert await eventually(lambda: len(descendants(os.getpid())) == processes)
    assert len(os.listdir("/proc/self/fd")) == fds
    await sandbox.close()
    assert not descendants(os.getpid()) or await eventually(lambda: len(os.listdir("/proc/self/fd")) < fds)


def test_several_event_loops_one_after_another() -> None:
    need("namespaces")
    box = ForkSandbox(limits=LIMITS, preimport=(), pool=1)

    async def use(code: str) -> str | None:
        return (await (await box.open()).run(code)).result

    try:
        assert [asyncio.run(use(f"{n} + 1")) for n in range(3)] == ["1", "2", "3"]
    finally:
        asyncio.run(box.close())
    assert asyncio.run(use("5")) == "5"  # and after a close it starts anew
    asyncio.run(box.close())


def test_nothing_survives_the_host(tmp_path: Path) -> None:
    """SIGKILL to the host while a fork of it still holds the sockets: every session dies all the same."""
    need("namespaces")
    code = f"""
import asyncio, os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from solostream.sandbox.fork import ForkSandbox
async def main():
    box = ForkSandbox(preimport=(), pool=1)
    session = await box.open()
    await session.run("import subprocess; subprocess.Popen(['/bin/sleep', '1000'], start_new_session=True)")
    print(box._server._process.pid, flush=True)
    if os.fork() == 0:
        time.sleep(1000)
    await session.run("import time; time.sleep(1000)", timeout=1000)
asyncio.run(main())
"""
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert host.stdout is not None
        guard = int(host.stdout.readline())
        time.sleep(0.3)
        below = descendants(guard)
        assert len(below) >= 4
        host.kill()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(running(pid) for pid in {guard, *below}):
            time.sleep(0.02)
        assert not [pid for pid in {guard, *below} if running(pid)]
    finally:
        os.killpg(host.pid, signal.SIGKILL)
        host.wait()


def test_bad_arguments_name_the_remedy() -> None:
    with pytest.raises(UserError, match="one of auto, namespaces, landlock, rlimits"):
        ForkSandbox(isolation="chroot")
    with pytest.raises(UserError, match="at least 1"):
        ForkSandbox(pool=0)
    with pytest.raises(UserError, match="allow_unisolated=True"):
        _ = ForkSandbox(isolation="rlimits").claims
    with pytest.raises(UserError, match="namespaces"):
        _ = ForkSandbox(isolation="rlimits", allow_unisolated=True, snapshot=True).claims


async def test_without_a_cgroup_the_processes_memory_is_still_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six processes of 100 MB each, under a limit of 256 MB that binds none of them alone."""
    need("namespaces")
    monkeypatch.setattr(cgroup, "make", lambda owner: None)
    box = ForkSandbox(limits=LIMITS, preimport=(), pool=1)
    try:
        session = await box.open()
        code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        if os.fork():
            os._exit(0)  # the grandchild is an orphan
        block = bytearray(os.urandom(4096)) * (100 * 256)
        time.sleep(60)
time.sleep(60)
"""
        seen = await session.run(code, timeout=30)
        assert (seen.status, seen.state_kept) == ("memory", False)
        # inherited pages are not counted: as many processes that allocate nothing may run
        idle = (
            "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        time.sleep(60)\ntime.sleep(1)\n6 * 7"
        )
        assert (await session.run(idle, timeout=30)).result == "42"
    finally:
        await box.close()


@pytest.mark.parametrize("descriptors", range(38, 44))  # of which a session takes a few: the last fit differs
def test_running_out_of_descriptors_is_an_infrastructure_failure(descriptors: int) -> None:
    """Some sessions are refused in one line each, which says what to raise; the others, and the server, go on."""
    need("namespaces")
    code = f"""
import asyncio, resource, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from solostream.errors import SandboxError
from solostream.sandbox.fork import ForkSandbox
resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))
async def main():
    box, opened, refused = ForkSandbox(preimport=(), pool=3), [], 0
    for _ in range(20):
        try:
            opened.append(await box.open())
        except SandboxError as error:
            assert "ulimit -n" in str(error), error
            refused += 1
    await asyncio.gather(*(session.close() for session in opened))
    print(len(opened) > 5, refused > 0, (await (await box.open()).run("1 + 1")).result)
    await box.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True 2\n", done.stderr
