"""The floors: imports go one way, and heavy libraries stay in the one file that needs each.

What is checked is read off the tree, and a rule that names no file fails, so that no rule outlives what it was for.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "solostream"
# floor -> the floors that it may use; what lies beside the floors is everybody's
BELOW: dict[str, set[str]] = {
    "sandbox": set(),
    "envs": {"sandbox"},
    "agent": {"sandbox", "envs"},
    "evaluation": {"sandbox", "envs", "agent"},
    "training": {"sandbox", "envs", "agent", "evaluation"},
    "viewer": {"sandbox", "envs", "agent", "evaluation"},
    "cli": {"sandbox", "envs", "agent", "evaluation", "training", "viewer"},
    "integrations": {"sandbox", "envs", "agent", "evaluation", "training"},
}
SHARED = {"disk", "errors", "hub", "provenance", "registry", "retry"}
# library -> the files or folders that may import it
ONLY_IN = {
    "torch": {
        "training",
        "agent/engines/hf",
        "agent/engines/weight_file.py",
        "agent/engines/vllm",
        "integrations/verl.py",
    },
    "vllm": {"agent/engines/vllm"},
    "docker": {"sandbox/docker"},
    "openai": {"agent/engines/chat_endpoint.py", "envs/rewards/judge.py"},
    "mcp": {"envs/tools/mcp.py"},
    "fastapi": {"sandbox/server", "viewer/server.py"},
    "torchao": {"training/learner/optimizer/low_memory.py"},
    "bitsandbytes": {"agent/engines/four_bit.py"},
    "trl": {"integrations/trl.py"},
    "ray": {"training/cluster/handles.py", "training/cluster/placement.py", "integrations/verl.py"},
    "verl": {"integrations/verl.py"},
}
FLOORS = sorted(path.name for path in HOUSE.iterdir() if path.is_symlink() and (path / "__init__.py").is_file())
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(floors of ours, other libraries) that a file imports anywhere in it."""
    ours: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            deeper = node.module == "solostream"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if deeper else [node.module]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            (ours if top == "solostream" else others).add(rest.partition(".")[0] if top == "solostream" else top)
    return ours, others


def inside(place: str, allowed: set[str]) -> bool:
    return any(place == one or place.startswith(one + "/") for one in allowed)


def test_every_floor_has_a_rule_and_every_rule_a_file() -> None:
    assert set(FLOORS) == set(BELOW)
    assert {path.stem for path in HOUSE.glob("*.py")} - {"__init__", "__main__"} == SHARED
    for library, allowed in ONLY_IN.items():
        for place in allowed:
            files = [path for path in FILES if inside(path.relative_to(ROOT).as_posix(), {place})]
            assert any(library in imports(path)[1] for path in files), f"{place} does not import {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    floor = place.split("/")[0]
    ours, others = imports(path)
    assert ours <= BELOW[floor] | SHARED | {floor, ""}  # "": solostream itself, which imports nothing at once
    assert not others & set(FLOORS), "a floor is imported as solostream.<floor>"
    for library, allowed in ONLY_IN.items():
        assert library not in others or inside(place, allowed), f"{library} in {place}"


@pytest.mark.parametrize("path", sorted(HOUSE.glob("*.py")), ids=lambda p: p.name)
def test_what_everybody_uses_imports_no_floor(path: Path) -> None:
    eager = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert path.stem == "__main__" or not {name for name in eager if name and name.startswith("solostream.")} - {
        f"solostream.{name}" for name in SHARED
    }


def test_no_folder_is_crowded() -> None:
    folders = {path.parent for path in FILES}
    crowded = {str(f.relative_to(ROOT)): len(list(f.glob("*.py"))) for f in folders if len(list(f.glob("*.py"))) > 14}
    assert not crowded


@pytest.mark.parametrize("package", ["solostream", "solostream.sandbox", "solostream.envs", "solostream.cli.main"])
def test_import_is_light(package: str) -> None:
    heavy = {"torch", "transformers", "vllm", "docker", "fastapi", "mcp", "ray", "matplotlib", "sympy"}
    code = f"import sys, {package}; print(*sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "\n"
