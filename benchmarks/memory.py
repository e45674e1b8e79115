"""The peak memory of real runs on a CPU, beside what `--dry-run` plans: SmolLM2-135M-Instruct, two updates each.

    python benchmarks/memory.py [FOLDER] [--only NAME …]

FOLDER: the model (default: build/smollm2; `scripts/smollm2.py` makes it). Each row is a training in a process of
its own: reinforcement learning with the `hf` engine, batches of 6 with 9 episodes in flight, 512 tokens a micro-batch,
a checkpoint at the end. Bar: ≤ 4 GB so, whole and in float32; with the defaults (128 a batch, 8,192 tokens) it is more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from solostream.training.config import validate
from solostream.training.config.dry_run import plan

BAR_GB = 4.0
SECTIONS: dict[str, dict[str, Any]] = {
    "run": {"steps": 2, "checkpoint_every": 2, "keep": 1},
    "model": {"device": "cpu"},
    "data": {"kinds": ["gcd"], "levels": [1], "train": 6, "test": 1},
    "env": {"turn_tokens": 64, "episode_tokens": 160, "max_turns": 2},
    "rollout": {"mode": "async", "batch": 6},
    "algorithm": {"tracker": {"start_samples": 0}},
    "learner": {"max_tokens_per_batch": 512},
    "eval": {"greedy": False},
}
LORA = {"learner": {"lora": {"rank": 16}}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "gradient checkpointing": {"learner": {"gradient_checkpointing": True}},
    "LoRA, rank 16": LORA,
    "LoRA, base in bfloat16": {**LORA, "model": {"dtype": "bfloat16"}},
    "LoRA, base in 4 bits": {**LORA, "model": {"dtype": "4bit"}},
    "8-bit moments": {"learner": {"moments": "8bit"}},
    "bfloat16, 8-bit moments": {"learner": {"masters": "bfloat16", "moments": "8bit"}},
}
SCRIPT = """
import json, resource, sys
from pathlib import Path
from solostream.training.config import validate
from solostream.training.run.trainer import Trainer

Trainer(validate(json.loads(sys.argv[1])), Path(sys.argv[2]) / "run").run()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


def measured(sections: dict[str, Any]) -> int:
    """Bytes."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SCRIPT, json.dumps(sections), folder]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/smollm2"))
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args()
    subprocess.run([sys.executable, Path(__file__).parents[1] / "scripts/smollm2.py", options.folder], check=True)
    print("variant                     measured   planned   off by")
    for name in options.only:
        sections = {**SECTIONS, "model": {**SECTIONS["model"], "path": str(options.folder)}}
        sections |= {part: {**sections[part], **changes} for part, changes in VARIANTS[name].items()}
        parts = plan(validate(sections), SECTIONS["data"]["train"], SECTIONS["data"]["test"]).memory
        planned, peak = sum(parts.values()), measured(sections)
        verdict = "" if name != "default" else ("   held" if peak <= BAR_GB * 1e9 else f"   missed: bar {BAR_GB} GB")
        print(
            f"{name:26}  {peak / 1e9:5.2f} GB  {planned / 1e9:5.2f} GB   {planned / peak - 1:+.0%}{verdict}", flush=True
        )


if __name__ == "__main__":
    main()
