"""A real daemon and an image of this source. Without them: skipped for a developer, an error where CI is set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def missing(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def image() -> str:
    """The image's name. It is brought up to date first, so that what is tested is what is in the working tree."""
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        missing("no Docker daemon answers: scripts/start-dockerd.sh")
    has = subprocess.run(["docker", "image", "inspect", "solostream-sandbox"], capture_output=True).returncode == 0
    if not has and not os.environ.get("CI"):
        missing("the image solostream-sandbox is missing: scripts/build-image-offline.sh")
    script, environment = ROOT / "scripts" / "build-image-offline.sh", {**os.environ, "PYTHON": sys.executable}
    built = subprocess.run([script], env=environment, capture_output=True, text=True)
    if built.returncode:
        missing(f"the image does not build: {built.stderr.strip()[-500:]}")
    return "solostream-sandbox"
