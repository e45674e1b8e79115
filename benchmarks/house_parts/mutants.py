"""Formulas broken on purpose, one at a time, in a copy of the tree: each must make a named test fail.

A mutant is an edit (old text, new text) of one file. A row whose old text is not there any more is an error, so the
list follows the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORMULAS = "tests/test_formulas.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """`tests`: what pytest is given; one failure kills."""

    what: str
    file: str
    old: str
    new: str
    tests: str = FORMULAS


MUTANTS = (
    Mutant(
        "drift summed from version 0",
        "training/advantages/value_tracker.py",
        "return abs(travelled_now - travelled_last)",
        "return abs(travelled_now)",
    ),
    Mutant(
        "staleness by dispatch, not by the oldest token",
        "training/rollouts/collector.py",
        "return int(sampled.min()) if len(sampled) else trajectory.dispatch.version",
        "return trajectory.dispatch.version",
    ),
    Mutant(
        "TIS switches itself on",
        "training/learner/learner.py",
        '            moved = {"drift": update.drift(self._scored(update.first), self.group)} if drift else {}\n',
        '            moved = {"drift": update.drift(self._scored(update.first), self.group)} if drift else {}\n'
        '        if update.metrics.result(version).get("mismatch/max", 0.0) > 0.01:\n'
        '            self.gradient.config = config.model_copy(update={"tis_cap": 2.0})\n',
    ),
    Mutant(
        "one seed for every request of an episode",
        "agent/rollout.py",
        "(seed * 1_000_003 + before + len(turn.ids)) & 0x7FFFFFFFFFFFFFFF",
        "seed",
    ),
    Mutant(
        "top-p drops the token that reaches p",
        "agent/engines/hf/sampling.py",
        "    keep &= (before < top_p[:, None])",
        "    keep &= (before + probabilities < top_p[:, None])",
    ),
    Mutant(
        "Muon without Nesterov",
        "training/learner/optimizer/muon.py",
        'updates.append(torch.lerp(gradient, state["momentum"], group["momentum"]))  # Nesterov',
        'updates.append(state["momentum"].clone())',
    ),
    Mutant(
        "the cosine is a straight line",
        "training/learner/optimizer/__init__.py",
        "0.5 * (1 + math.cos(math.pi * done))",
        "1 - done",
    ),
    Mutant("split by id, not by prompt", "envs/data/combine.py", '"{seed}\\0{task.prompt}"', '"{seed}\\0{task.id}"'),
    Mutant(
        "rescored evidence in the order of the batch",
        "training/advantages/tree/evidence.py",
        "return sorted(found, key=lambda pair: batch[pair[0]].dispatch.event)",
        "return found",
    ),
)


def copy_of_the_tree(place: Path) -> None:
    """What git tracks and what it would (not what it ignores), the links of `solostream/` included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name, follow_symlinks=False)


def killed(place: Path, mutant: Mutant) -> bool:
    """Apply, run the tests, undo. Raises ValueError when there is nothing to break."""
    path = place / mutant.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {sound.count(mutant.old)} times: {mutant.old}")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return not passes(place, mutant.tests)
    finally:
        path.write_text(sound, encoding="utf-8")


def passes(place: Path, tests: str) -> bool:
    """Whether the tests of a copy pass. Raises RuntimeError when they did not run."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):  # 1: a test failed
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.returncode == 0


def report() -> list[tuple[str, bool]]:
    """(mutant, killed) of each, after the unbroken copy has passed."""
    with tempfile.TemporaryDirectory(prefix="solostream-mutants-") as folder:
        place = Path(folder)
        copy_of_the_tree(place)
        for tests in sorted({mutant.tests for mutant in MUTANTS}):
            if not passes(place, tests):
                raise RuntimeError(f"{tests} fails without any mutant")
        return [(mutant.what, killed(place, mutant)) for mutant in MUTANTS]


def show() -> bool:
    """Print a line a mutant; whether all were killed."""
    found = report()
    for what, dead in found:
        print(f"  {'killed  ' if dead else 'SURVIVED'}  {what}")
    return all(dead for _, dead in found)


if __name__ == "__main__":
    sys.exit(not show())
