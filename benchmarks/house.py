"""The bars of the house, printed: how full folders and files are, types, words, and formulas that tests hold.

    python benchmarks/house.py [--quick]

--quick leaves out the mutants and the files to touch. A line says "held" or "missed", and what was found.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from house_parts import density, doors, mutants

ROOT = Path(__file__).parents[1]
FLOORS = ("agent", "cli", "envs", "evaluation", "integrations", "sandbox", "solostream", "training", "viewer")
# Words that the house gave up, as identifiers. Kept on purpose and so not here: `ending` (TRL and verl have three words
# for it), `void` (SimpleTIR's own), `Dispatch.event` (SPO++'s order of events), `plan` (of packs, and of a dry run),
# `Layout` (of data rows), `Streams` (stdout and stderr of a process) and `fold` (of a context, in
# Memory-as-Action's sense), which mean what they say there.
OLD_WORDS = (
    "Rounds", "Effort", "Ticket", "Job", "Parts", "Played", "Practice", "Lesson", "HeldOut", "Ledger",
    "Scorer", "AnswerAtOnce", "Measures", "PICKS", "Pack", "Monitor", "essence", "of_this_life",
    "mend", "learnt", "Behaviour", "optimiser", "standardise", "initialise", "Policy", "bury", "last_words", "talk",
    "door", "minibatches", "kl_coefficient", "entropy_bonus", "token_budget",
)  # fmt: skip


def files() -> list[Path]:
    """Every Python file of the product, once."""
    return [p for floor in FLOORS for p in sorted((ROOT / floor).rglob("*.py")) if not _through_a_link(p)]


def _through_a_link(path: Path) -> bool:
    return any((ROOT / parent).is_symlink() for parent in path.relative_to(ROOT).parents)


def verdict(held: bool, what: str) -> bool:
    print(f"{'held  ' if held else 'MISSED'}  {what}")
    return held


def sizes(paths: list[Path]) -> bool:
    folders = Counter(path.parent for path in paths)
    fullest, count = folders.most_common(1)[0]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    longest = max(lines, key=lambda path: lines[path])
    functions = [
        ((node.end_lineno or 0) - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.name}")
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return all(
        [
            verdict(count <= 14, f"fullest folder: {count} files, {fullest.relative_to(ROOT)}/ (bar 14)"),
            verdict(median(lines.values()) <= 120, f"median file: {median(lines.values()):g} lines (bar 120)"),
            verdict(lines[longest] <= 400, f"longest file: {lines[longest]}, {longest.relative_to(ROOT)} (bar 400)"),
            verdict(max(functions)[0] <= 60, f"longest function: {max(functions)[0]}, {max(functions)[1]} (bar 60)"),
        ]
    )


def words(paths: list[Path]) -> bool:
    """Identifiers only: prose may say that somebody has learnt something."""
    old = set(OLD_WORDS)
    found: list[str] = []
    for path in paths:
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for attribute in ("id", "attr", "name", "arg"):
                name = getattr(node, attribute, None)
                if isinstance(name, str):
                    names |= {name, *re.split(r"_+", name)}
        found += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(names & old)]
    return verdict(not found, f"names of the old vocabulary: {len(found)}" + "".join(f"\n          {f}" for f in found))


def strict_types() -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-200:]
    return verdict(done.returncode == 0, f"mypy --strict: {last}")


def style() -> bool:
    """Complexity, length, names and docstrings of the public API, with the exemptions that pyproject.toml gives."""
    chosen = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]["select"]
    off = {"C901", "PLR0915", "N", "D"} - set(chosen)
    ruff = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."]
    done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, check=False)
    last = f"not switched on: {sorted(off)}" if off else (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    return verdict(done.returncode == 0 and not off, f"ruff with C901, PLR0915, N, D: {last}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the mutants and the files to touch")
    options = parser.parse_args()
    paths = files()
    held = [sizes(paths), words(paths), strict_types(), style()]
    print("how dense the parts are that are read first:")
    density.show_read_first()
    if not options.quick:
        held.append(verdict(doors.show(), "files to touch: 0 outside, at most 2 inside, for every kind"))
        held.append(verdict(mutants.show(), "mutants of the formulas: all killed"))
    return not all(held)


if __name__ == "__main__":
    sys.exit(main())
