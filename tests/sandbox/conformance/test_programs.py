"""The same programs on every backend: what is printed, returned and raised is what programs.txt says."""

from __future__ import annotations

import importlib.util

import pytest

from solostream.sandbox.conformance import programs
from solostream.sandbox.spec import open_sandbox
from solostream.sandbox.types import Limits


@pytest.mark.parametrize("spec", ["fork", "jupyter"])
async def test_every_program_means_the_same(spec: str) -> None:
    if spec == "jupyter" and importlib.util.find_spec("ipykernel") is None:
        pytest.skip("ipykernel is not installed")
    await differences(spec)


async def differences(spec: str) -> None:
    """All in one session, so that a kernel need not start for each; programs that differ get the next one a new one."""
    assert len(programs.PROGRAMS) >= 85
    assert len({program.name for program in programs.PROGRAMS}) == len(programs.PROGRAMS)
    box = open_sandbox(spec, limits=Limits(timeout_s=60))
    found = []
    try:
        session = await box.open()
        for program in programs.PROGRAMS:
            try:
                await programs.judge(session, program)
            except AssertionError as broken:
                found.append(f"{program.name}: {broken}")
                await session.close()
                session = await box.open()
    finally:
        await box.close()
    assert found == []
