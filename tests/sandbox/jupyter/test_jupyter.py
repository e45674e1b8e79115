"""Real kernels on this machine."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from solostream.sandbox import SandboxError, UserError
from solostream.sandbox.conformance import check, host
from solostream.sandbox.fork.server import probe
from solostream.sandbox.jupyter.sandbox import JupyterSandbox
from solostream.sandbox.types import Limits

LIMITS = Limits(timeout_s=30, memory_mb=256, processes=32, disk_mb=16, open_files=128, output_bytes=4096)


@pytest.fixture
async def sandbox():
    if probe("auto")[0] != "namespaces":
        if os.environ.get("CI"):
            pytest.fail("CI needs the tier 'namespaces'")
        pytest.skip("this machine does not grant the tier 'namespaces'")
    before = set(host.descendants(os.getpid()))
    box = JupyterSandbox(limits=LIMITS)
    yield box
    await box.close()
    assert set(host.descendants(os.getpid())) <= before


async def test_a_notebooks_session(sandbox):
    session = await sandbox.open()
    assert (await session.run("x = 20\nx + 1")).result == "21"
    rich = await session.run(
        "from IPython.display import HTML, display\n"
        "class Both:\n    _repr_html_ = lambda self: '<b>1</b>'\n    __repr__ = lambda self: 'plain'\n"
        "display(HTML('<i>2</i>'))\nBoth()"
    )
    assert rich.result == "plain"
    assert [bundle.get("text/html") for bundle in rich.display] == ["<i>2</i>", "<b>1</b>"]
    assert (await session.run("list(range(2000))")).result == repr(list(range(2000)))[:4096]
    printed = await session.run("import os\nos.system('echo child')\nos.write(1, b'raw\\n')\nprint('end')")
    assert printed.stdout == "child\nraw\nend\n"
    awaited = await session.run("import asyncio\nawait asyncio.sleep(0, 'awaited')")
    assert awaited.result == "'awaited'"
    late = await session.run("print('before')\nwhile True: pass", timeout=1)
    assert (late.status, late.stdout, late.state_kept) == ("timeout", "before\n", True)
    assert (await session.run("x")).result == "20"
    died = await session.run("print('last words')\nos._exit(0)")
    assert (died.status, died.stdout, died.state_kept) == ("killed", "last words\n", False)
    fresh = await session.run("x")
    assert fresh.error is not None
    assert fresh.error.name == "NameError"


async def test_a_kernel_is_confined_like_a_fork_session(sandbox, monkeypatch):
    monkeypatch.setenv("SOLOSTREAM_SECRET", "1")
    session = await sandbox.open()
    code = f"""
import os, socket
def tried(action):
    try:
        return action()
    except OSError as error:
        return type(error).__name__
print(tried(lambda: open('/etc/shadow').read()))
print(tried(lambda: os.listdir({str(Path(__file__).parent)!r})))
print(tried(lambda: socket.socket()))
print([name for name in os.listdir('/tmp') if 'solostream' in name])
print(os.getuid() != 0, 'SOLOSTREAM_SECRET' in os.environ)
"""
    lines = (await session.run(code)).stdout.splitlines()
    assert lines == ["FileNotFoundError", "FileNotFoundError", "PermissionError", "[]", "True False"]


SAMPLE = (
    "endless print",
    "an error message of 50 MB",
    "fork bomb that forks itself",
    "double-forked",
    "forged reply frames",
    "closed stdout and stderr",
    "calls to one session take turns",
    "a cancelled call leaves no stale reply",
    "lone surrogates",
    "segmentation fault",
)


async def test_it_holds():
    """A sample of the suite, in one sandbox: `solostream sandbox check jupyter --jobs 2` runs it all, in minutes."""
    report = await check("jupyter", only=SAMPLE, jobs=2)
    assert [(case.name, case.detail) for case in report.failed] == []
    assert len(report.cases) >= len(SAMPLE)


async def test_a_killed_host_leaves_no_kernel():
    code = """
import asyncio
from solostream.sandbox.jupyter.sandbox import JupyterSandbox
async def main():
    session = await JupyterSandbox().open()
    await session.run("import ctypes; ctypes.CDLL(None).prctl(15, b'orphan-kernel', 0, 0, 0)")
    print("ready", flush=True)
    await session.run("while True: pass", timeout=60)
asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    assert host.tagged("orphan-kernel")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert not await host.settle(lambda: host.tagged("orphan-kernel"), 10)


async def test_closed_means_closed(sandbox):
    session = await sandbox.open()
    running = asyncio.create_task(session.run("import time\ntime.sleep(60)", timeout=60))
    await asyncio.sleep(0.5)
    await session.close()
    await session.close()
    assert (await running).status == "killed"
    with pytest.raises(SandboxError, match="closed"):
        await session.run("1")


def test_an_unknown_tier_names_the_known_ones():
    with pytest.raises(UserError, match="auto, namespaces, landlock"):
        JupyterSandbox(isolation="rlimits")
