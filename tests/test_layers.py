"""The floors: imports go one way, and heavy libraries stay in the one file that needs each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["sandbox", "envs", "agent", "training", "viewer"]
BELOW = {
    "sandbox": set(),
    "envs": {"sandbox"},
    "agent": {"sandbox", "envs"},
    "training": {"sandbox", "envs", "agent"},
    "viewer": {"sandbox", "envs", "agent"},
}
# library -> the files (or folders) outside training/ that may import it
ONLY_IN = {
    "torch": {"training", "agent/hf.py", "agent/hf", "agent/weightfile.py", "agent/vllm_worker.py"},
    "vllm": {"agent/vllm.py", "agent/vllm", "agent/vllm_worker.py"},
    "docker": {"sandbox/docker.py", "sandbox/docker"},
    "fastapi": {"sandbox/server.py", "sandbox/server", "viewer/server.py"},
    "ray": {"training/cluster.py"},
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    floor = place.split("/")[0]
    used = imports(path)
    assert not (used & set(FLOORS)) - BELOW[floor] - {floor}
    for library, allowed in ONLY_IN.items():
        if library in used:
            assert any(place == a or place.startswith(a + "/") for a in allowed), f"{library} in {place}"


@pytest.mark.parametrize("package", ["sandbox", "envs", "training.cli"])
def test_import_is_light(package: str) -> None:
    heavy = {"torch", "transformers", "vllm", "docker", "fastapi", "ray", "matplotlib", "sympy"}
    code = f"import sys, {package}; print(*sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "\n"
