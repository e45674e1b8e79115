"""The image's recipe has all that the package is made of: each floor is a link to a folder that must be copied too."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_image_copies_every_floor() -> None:
    floors = {
        link.resolve().relative_to(ROOT).parts[0] for link in (ROOT / "solostream").iterdir() if link.is_symlink()
    }
    recipe = (ROOT / "sandbox/image/Dockerfile").read_text().splitlines()
    copied = {line.split()[1] for line in recipe if line.startswith("COPY ") and len(line.split()) == 3}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert len(floors) > 7
    assert floors - copied == set()
    assert floors - sent == set()
