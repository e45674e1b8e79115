"""The `docker-jupyter` backend against a real daemon."""

import os
import subprocess

import pytest

from solostream.sandbox.conformance import check
from solostream.sandbox.docker import DockerJupyterSandbox
from solostream.sandbox.types import Limits

pytestmark = pytest.mark.docker
LIMITS = Limits(timeout_s=30, memory_mb=256, processes=32, disk_mb=16, open_files=128, output_bytes=4096)


def containers() -> list[str]:
    command = ["docker", "ps", "-aq", "--filter", f"label=solostream.owner={os.getpid()}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


async def test_a_kernel_in_its_own_container(image):
    box = DockerJupyterSandbox(limits=LIMITS)
    try:
        session = await box.open()
        assert session.isolation.startswith("container+seccomp+landlock")
        assert (await session.run("x = 20\nx + 1")).result == "21"
        rich = await session.run("import sympy\nsympy.Symbol('y') ** 2")
        assert rich.result == "y**2"
        assert rich.display[0]["text/latex"] == "$\\displaystyle y^{2}$"
        late = await session.run("print('before')\nwhile True: pass", timeout=1)
        assert (late.status, late.stdout, late.state_kept) == ("timeout", "before\n", True)
        deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
        killed = await session.run(deaf, timeout=1)
        assert (killed.status, killed.state_kept) == ("timeout", False)
        assert (await session.run("6 * 7")).result == "42"
        other = await box.open()
        assert (await other.run("'x' in dir()")).result == "False"
        await other.close()
    finally:
        await box.close()
    assert containers() == []


SAMPLE = (
    "N processes times the memory limit",
    "shared memory of which only a page stays mapped",
    "disk fill",
    "double-forked",
    "TCP out",
    "becoming root",
    "fork bomb",
    "a cancelled call leaves no stale reply",
)


async def test_it_holds(image):
    """A sample of the suite, in one sandbox: `solostream sandbox check docker-jupyter --jobs 2` runs it all."""
    report = await check("docker-jupyter", only=SAMPLE, jobs=2)
    assert [(case.name, case.detail) for case in report.failed] == []
    assert len(report.cases) > len(SAMPLE)
