"""open_sandbox and the synchronous face."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from solostream.errors import SandboxError, UserError
from solostream.sandbox import Interpreter, open_sandbox
from solostream.sandbox.interpreter import background_loop, wait
from solostream.sandbox.types import Limits
from tests.sandbox.fork.conftest import need


def test_limits_are_gathered() -> None:
    box = open_sandbox("fork", memory_mb=64, timeout_s=3)
    assert box.limits == Limits(memory_mb=64, timeout_s=3)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("frok", {}, "did you mean 'fork'"),
        ("zzz", {}, "allowed: fork, docker"),
        ("fork", {"memory_bm": 1}, "no option 'memory_bm'; did you mean 'memory_mb'"),
        ("fork", {"limits": Limits(), "memory_mb": 1}, "not both"),
        ("no_such_package:Box", {}, "no module 'no_such_package'"),
        ("solostream.sandbox.types:Box", {}, "has no 'Box'"),
    ],
)
def test_mistakes_name_the_remedy(spec: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_sandbox(spec, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_docker.py").write_text("import docker.nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(UserError, match=r"pip install 'solostream\[docker\]'"):
        open_sandbox("needs_docker:Box")


def test_a_factory_by_its_place() -> None:
    assert type(open_sandbox("solostream.sandbox.fork:ForkSandbox", pool=3)) is type(open_sandbox("fork"))


def test_interpreter() -> None:
    need("namespaces")
    with Interpreter(preimport=(), pool=1) as py:
        assert py.run("1 + 1").result == "2"
        py.run("x = 20")
        assert py.run("x").result == "20"
        assert "namespaces" in py.isolation

        async def within_a_running_loop() -> str | None:
            return py.run("x + 1").result

        assert asyncio.run(within_a_running_loop()) == "21"
        py.close()
        assert py.run("'x' in dir()").result == "False"


def test_a_forked_process_gets_its_own_loop() -> None:
    async def answer() -> int:
        return 42

    assert wait(answer()) == 42
    before = background_loop()
    pid = os.fork()
    if pid == 0:
        os._exit(wait(answer()) if background_loop() is not before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_a_closed_session_says_so() -> None:
    need("namespaces")

    async def use() -> None:
        box = open_sandbox("fork", preimport=(), pool=1)
        try:
            session = await box.open()
            await session.close()
            with pytest.raises(SandboxError, match="closed"):
                await session.run("1")
        finally:
            await box.close()

    asyncio.run(use())
