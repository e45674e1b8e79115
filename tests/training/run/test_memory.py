"""The peak of a real run against what `--dry-run` says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from solostream.training.config import validate
from solostream.training.config.dry_run import plan

SECTIONS = {
    "run": {"steps": 1},
    "model": {"device": "cpu", "build": {"hidden_size": 768, "layers": 5, "mlp_size": 2304}},
    "data": {"kinds": ["gcd"], "levels": [1], "train": 4, "test": 1},
    "env": {"turn_tokens": 40, "episode_tokens": 40, "max_turns": 1, "options": {"system_prompt": ""}},
    "rollout": {"mode": "sync", "batch": 8},
    "algorithm": {"tracker": {"start_samples": 0}},
    "learner": {"max_tokens_per_batch": 256},
    "eval": {"greedy": False},
}
SCRIPT = """
import json, sys
from pathlib import Path
from solostream.training.config import validate
from solostream.training.run.trainer import Trainer

class Peak:
    def on_step(self, *_):
        lines = Path("/proc/self/status").read_text().splitlines()
        print("peak", next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")), flush=True)

Trainer(validate(json.loads(sys.argv[1])), Path(sys.argv[2]) / "run", callbacks=[Peak()]).run()
"""


def test_the_peak_is_within_15_percent_of_the_plan(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, json.dumps(SECTIONS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    measured = next(int(line.split()[1]) << 10 for line in done.stdout.splitlines() if line.startswith("peak"))
    parts = plan(validate(SECTIONS), 4, 1).memory
    planned = sum(parts.values())
    assert planned > 1.8 * parts["program"]  # else it would tell of the program alone
    assert measured == pytest.approx(planned, rel=0.15), parts
