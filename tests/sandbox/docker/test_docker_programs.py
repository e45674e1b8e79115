"""The same programs in containers."""

from __future__ import annotations

import pytest

from tests.sandbox.conformance.test_programs import differences


@pytest.mark.parametrize("spec", ["docker", "docker-jupyter"])
async def test_every_program_means_the_same_in_a_container(spec: str, image: str) -> None:
    await differences(spec)
