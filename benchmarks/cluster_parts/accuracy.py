"""The quickstart, reduced, in one process and on the small cluster: 2 ranks, 2 replicas of the engine `hf`, 2 players.

Both are the command that a user types, with the same seed. What they end with is evaluated on the held-out problems, 32
samples each: the run's own evaluation takes one, whose chance alone is 4 points. A finished run or evaluation in the
folder is read instead of repeated, an interrupted one goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from solostream.evaluation.compare import compare

ROOT = Path(__file__).parents[2]
WITHIN = 0.02
SAMPLES = 32  # a held-out problem
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
    """By size of the cluster what the run's summary says, and the difference of their accuracies, with its interval."""
    found: dict[str, Any] = {}
    evaluated = []
    for number, (size, cluster) in enumerate(SIZES.items()):
        folder = runs / f"{'quick' if quick else 'reduced'}-{number}"
        if not (folder / "summary.json").exists():
            settings = {**REDUCED, **(SMALLER if quick else {}), "run.root": json.dumps(str(runs))}
            settings |= {f"cluster.{name}": n for name, n in cluster.items()}
            sets = [f"--set={key}={value}" for key, value in settings.items()]
            recipe = str(ROOT / "configs/recipes/quickstart.toml")
            solostream("train", recipe, "--name", folder.name, "--resume", "auto", *sets)
        found[size] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        evaluated.append(runs / f"{folder.name}-eval")
        if not (evaluated[-1] / "summary.json").exists():
            model, samples = max((folder / "checkpoints").iterdir()), str(2 if quick else SAMPLES)
            solostream("eval", str(model), "-k", samples, "--concurrency", "128", "--out", str(evaluated[-1]))
    compared = compare(*evaluated)
    one, many = compared.scalar("avg")
    problems = len(compared.rows)
    return {"runs": found, "avg": [one, many], "k": compared.k, "problems": problems, **compared.difference}


def solostream(*words: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "solostream", *words]
    subprocess.run(command, check=True, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)


def table(found: dict[str, Any]) -> str:
    rows = [
        f"| {size} | {avg:.3f} | {run['before']['accuracy_greedy']:.3f} → {run['after']['accuracy_greedy']:.3f} "
        f"| {run['wall_s']:.0f} s |"
        for (size, run), avg in zip(found["runs"].items(), found["avg"], strict=True)
    ]
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    verdict = "held" if abs(mean) <= 100 * WITHIN else "MISSED"
    last = f"difference {mean:+.1f} points (95 % by the problems: {low:+.1f} to {high:+.1f}); within 2: {verdict}"
    head = f"| | {found['problems']} held-out problems, {found['k']} samples each | greedy, before → after | the run |"
    return "\n".join([head, "|---|---|---|---|", *rows, last])
