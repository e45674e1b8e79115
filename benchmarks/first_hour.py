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

ROOT = Path(__file__).parents[1]
SMALL = (
    "run.steps=1",
    "rollout.batch=8",
    "data.train=16",
    "data.test=8",
    "env.turn_tokens=24",
    "env.episode_tokens=64",
)
WRONG = {  # command -> ten wrong ways to use it
    "train": (
        "", "nowhere.toml", "quickstrat", "quickstart --nmae x", "quickstart --set", "quickstart --set run.steps=many",
        "quickstart --set data.path=gone.jsonl --set cold_start.phases=[]", "quickstart --set env.options.answr=tag",
        "quickstart --set env.id=CartPole-v1", "bad.jsonl",
    ),
    "eval": (
        "", "gone", "scripted:json", "scripted:gone:f", "scripted:json:loads --data gone.jsonl", "chat:nothing",
        "scripted:json:loads --data bad.jsonl", "scripted:json:loads --columns x --data rows.jsonl",
        "scripted:json:loads --env-options [1]", "scripted:json:loads -k 0",
    ),
    "view": (
        "", "gone", "gone also", ". ", "rows.jsonl --port x", "rows.jsonl --port 99999", "rows.jsonl --prt 1",
        "rows.jsonl --host 256.1.1.1", "rows.jsonl --tokenizer gone", "bad.jsonl/x",
    ),
    "sandbox run": (
        "", "fork", "frok rows.jsonl", "fork gone.py", "fork rows.jsonl --timeout x", "docker:x rows.jsonl",
        "gone:F rows.jsonl", "json:gone rows.jsonl", "fork rows.jsonl more", "fork . ",
    ),
    "init": (
        "", "a b", "x --from", "x --from nothing", "x --form own-data", "rows.jsonl/x", "gone/x", "x --from own",
        "x --recipe quickstart", "taken",
    ),
}  # fmt: skip


def main() -> int:
    bars = _Bars()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(folder)
        for kind in ("plain", "trl", "verl"):
            bars.append(_own_rows(folder, kind))
        for command, lines in WRONG.items():
            said = [_told(folder, f"{command} {line}") for line in lines]
            wrong = [f"`{line}`: {text!r}" for line, text in zip(lines, said, strict=True) if text is not None]
            bars.append(
                (
                    f"ten wrong uses of {command}: one line each",
                    f"{10 - len(wrong)} of 10 {'; '.join(wrong)}",
                    not wrong,
                )
            )
    notebook = [sys.executable, "-m", "pytest", "-q", "tests/docs/test_example_notebook.py"]
    bars.append(_command("a notebook trains", notebook))
    bars.append(
        _command("code blocks of README and docs", [sys.executable, "-m", "pytest", "-q", "tests/docs/test_blocks.py"])
    )
    if "--installs" in sys.argv:
        bars.append(_command("installs from the public index", [sys.executable, "scripts/check-install.py"]))
    if "--endpoint" in sys.argv:
        bars.append(_command("endpoints", [sys.executable, "benchmarks/first_hour_parts/endpoint.py"]))
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
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.jsonl").write_text((folder / "plain.jsonl").read_text())
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


def _told(folder: Path, line: str) -> str | None:
    """None where a mistake is told in one line and refused; else what was said instead."""
    done = _run(folder, *line.split())
    said = done.stderr.splitlines()
    fine = done.returncode in (1, 2) and len(said) == 1 and said[0].startswith("solostream: ") and len(said[0]) < 700
    return None if fine else f"exit {done.returncode}, {done.stderr[-200:]}"


def _command(name: str, command: list[str]) -> tuple[str, str, bool]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return name, (done.stdout.strip().splitlines() or [""])[-1], done.returncode == 0


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "solostream", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL, timeout=300)


if __name__ == "__main__":
    sys.exit(main())
