"""A stranger's first hour, as bars: does it install, take his rows, train in his notebook, tell his mistakes in a line?

`python benchmarks/first_hour.py [--installs] [--endpoint]`: the two options take minutes (pip's index; a vLLM server).
Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from first_hour_parts.wrong_uses import WRONG

ROOT = Path(__file__).parents[1]
PARTS = ROOT / "benchmarks" / "first_hour_parts"
SMALL = (
    "run.steps=1",
    "rollout.batch=8",
    "data.train=16",
    "data.test=8",
    "env.turn_tokens=24",
    "env.episode_tokens=64",
)


def main() -> int:
    bars = _Bars()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(folder)
        for kind in ("plain", "trl", "verl"):
            bars.append(_own_rows(folder, kind))
        for command in WRONG:
            bars.append(_wrong_uses(folder, command))
    notebook = [sys.executable, "-m", "pytest", "-q", "tests/docs/test_example_notebook.py"]
    bars.append(_command("a notebook trains", notebook))
    bars.append(
        _command("code blocks of README and docs", [sys.executable, "-m", "pytest", "-q", "tests/docs/test_blocks.py"])
    )
    if "--installs" in sys.argv:
        bars.append(_command("installs from the public index", [sys.executable, "scripts/check-install.py"]))
    if "--endpoint" in sys.argv:
        for name, which in (
            ("1,000 requests, one in three answered 429", "rate"),
            ("eval chat: is eval vllm:", "vllm"),
        ):
            bars.append(_command(name, [sys.executable, PARTS / "endpoint.py", "--only", which]))
    return 0 if all(held for *_, held in bars) else 1


class _Bars(list[tuple[str, str, bool]]):
    """Each is printed as soon as it is known."""

    def append(self, bar: tuple[str, str, bool]) -> None:
        name, value, held = bar
        print(f"{'✓' if held else '✗'} {name:<48} {value}", flush=True)
        super().append(bar)


def _write(folder: Path) -> None:
    asked = [(f"What is {i} plus 3?", str(i + 3)) for i in range(200)]
    user = lambda text: [{"role": "user", "content": text}]
    forms = {
        "plain": [{"question": q, "answer": a} for q, a in asked],
        "trl": [{"prompt": user(q), "solution": a} for q, a in asked],
        "verl": [{"prompt": user(q), "reward_model": {"ground_truth": a}, "data_source": "sums"} for q, a in asked],
    }
    for name, rows in forms.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rows.jsonl").write_text((folder / "plain.jsonl").read_text(encoding="utf-8"))
    (folder / "bad.jsonl").write_text("{\n")
    (folder / "taken.toml").touch()


def _own_rows(folder: Path, kind: str) -> tuple[str, str, bool]:
    """200 rows train in one command, and what came of it is evaluated in one."""
    started = time.monotonic()
    settings = [word for s in (*SMALL, "cold_start.phases=[]", f"data.path={kind}.jsonl") for word in ("--set", s)]
    trained = _run(folder, "train", "quickstart", "--name", kind, *settings)
    seconds = time.monotonic() - started
    evaluated = _run(folder, "eval", f"runs/{kind}/checkpoints/step-000001")
    held = trained.returncode == evaluated.returncode == 0 and "rows of the layout" in trained.stdout
    return (
        f"200 {kind} rows train and evaluate",
        f"{seconds:.0f} s" if held else trained.stderr + evaluated.stderr,
        held,
    )


def _wrong_uses(folder: Path, command: str) -> tuple[str, str, bool]:
    done = subprocess.run([sys.executable, PARTS / "wrong_uses.py", command], capture_output=True, text=True,
                          cwd=folder, stdin=subprocess.DEVNULL, timeout=900)  # fmt: skip
    name, count = f"{len(WRONG[command])} wrong uses of {command}: one line each", len(WRONG[command])
    if done.returncode:
        return name, done.stderr[-300:], False
    otherwise = json.loads(done.stdout.splitlines()[-1])
    told = "; ".join(f"`{line}`: {text}" for line, text in otherwise.items())
    return name, f"{count - len(otherwise)} of {count} {told}".rstrip(), not otherwise


def _command(name: str, command: list[str | Path]) -> tuple[str, str, bool]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return name, (done.stdout.strip().splitlines() or [""])[-1], done.returncode == 0


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "solostream", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL, timeout=300)


if __name__ == "__main__":
    sys.exit(main())
