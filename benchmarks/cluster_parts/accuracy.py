"""The quickstart, reduced, in one process and on the small cluster: 2 ranks, 2 replicas of the engine `hf`, 2 players.

Both are the command that a user types, with the same seed. A finished run in the folder is read instead of repeated, an
interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WITHIN = 0.02
# Half of everything that the quickstart does: two kinds of problems are learnt in that time.
REDUCED = {
    **{"run.steps": 12, "run.checkpoint_every": 4, "rollout.mode": "sync", "rollout.batch": 48, "eval.every": 0},
    **{"data.train": 256, "data.test": 150, "data.kinds": '["gcd","muladd"]', "data.levels": "[1]"},
    "cold_start.phases": "[{steps = 110, mix = {early = 0.75, late = 0.2, guess = 0.05}},"
    " {steps = 20, mix = {early = 0.15, late = 0.3, guess = 0.3, bug = 0.25}}]",
}
SMALLER = {"run.steps": 6, "data.test": 100, "rollout.batch": 32}
SIZES = {"one process": {}, "2 ranks, 2 replicas, 2 players": {"learners": 2, "replicas": 2, "players": 2}}


def measure(runs: Path, *, quick: bool = False) -> dict[str, Any]:
    """By size of the cluster what the run's summary says."""
    found = {}
    for number, (size, cluster) in enumerate(SIZES.items()):
        folder = runs / f"{'quick' if quick else 'reduced'}-{number}"
        if not (folder / "summary.json").exists():
            settings = {**REDUCED, **(SMALLER if quick else {}), "run.root": json.dumps(str(runs))}
            settings |= {f"cluster.{name}": n for name, n in cluster.items()}
            command = [sys.executable, "-m", "solostream", "train", str(ROOT / "configs/recipes/quickstart.toml")]
            command += ["--name", folder.name, "--resume", "auto"]
            command += [f"--set={key}={value}" for key, value in settings.items()]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        found[size] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def table(found: dict[str, Any]) -> str:
    rows = [
        f"| {size} | {run['before']['accuracy']:.3f} → {run['after']['accuracy']:.3f} "
        f"| {run['before']['accuracy_greedy']:.3f} → {run['after']['accuracy_greedy']:.3f} | {run['wall_s']:.0f} s |"
        for size, run in found.items()
    ]
    one, many = (run["after"]["accuracy"] for run in found.values())
    verdict = "held" if abs(one - many) <= WITHIN else "MISSED"
    last = f"difference {100 * (many - one):+.1f} points (wanted: within 2): {verdict}"
    return "\n".join(["| | held-out accuracy, sampled | greedy | |", "|---|---|---|---|", *rows, last])
