"""A stranger's first hour, as bars: does it install, take his rows, train in his notebook, tell his mistakes in a line?

`python benchmarks/first_hour.py [--only BAR …] [--all]`; else those without pip's index and vLLM.
Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from first_hour_parts.wrong_uses import WRONG

Bar = tuple[str, str, bool]  # its name, what came out, whether it is held
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BARS, help="these alone")
    parser.add_argument("--all", action="store_true", help="all of them: about an hour")
    options = parser.parse_args()
    bars = _Bars()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write(folder)
        for name in options.only or (BARS if options.all else QUICK):
            for bar in BARS[name](folder):
                bars.append(bar)
    return 0 if all(held for *_, held in bars) else 1


class _Bars(list[Bar]):
    """Each is printed as soon as it is known."""

    def append(self, bar: Bar) -> None:
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


def _rows(folder: Path) -> Iterator[Bar]:
    return (_own_rows(folder, kind) for kind in ("plain", "trl", "verl"))


def _mistakes(folder: Path) -> Iterator[Bar]:
    return (_wrong_uses(folder, command) for command in WRONG)


def _own_rows(folder: Path, kind: str) -> Bar:
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


def _wrong_uses(folder: Path, command: str) -> Bar:
    done = subprocess.run([sys.executable, PARTS / "wrong_uses.py", command], capture_output=True, text=True,
                          cwd=folder, stdin=subprocess.DEVNULL, timeout=900)  # fmt: skip
    name, count = f"{len(WRONG[command])} wrong uses of {command}: one line each", len(WRONG[command])
    if done.returncode:
        return name, done.stderr[-300:], False
    otherwise = json.loads(done.stdout.splitlines()[-1])
    told = "; ".join(f"`{line}`: {text}" for line, text in otherwise.items())
    return name, f"{count - len(otherwise)} of {count} {told}".rstrip(), not otherwise


def _tests(name: str, file: str) -> Callable[[Path], Iterator[Bar]]:
    return lambda folder: iter(
        [_command(name, [sys.executable, "-m", "pytest", "-p", "no:warnings", f"tests/docs/{file}"])]
    )


def _endpoint(name: str, which: str) -> Callable[[Path], Iterator[Bar]]:
    return lambda folder: iter([_command(name, [sys.executable, PARTS / "endpoint.py", "--only", which])])


def _installs(folder: Path) -> Iterator[Bar]:
    """The dry run of pip, and the wheel without extras at work, on every Python that we claim."""
    for version in ("3.11", "3.12", "3.13"):
        command = [sys.executable, "scripts/check-install.py", version]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CI": "true"})
        told = re.sub(rf"Python {re.escape(version)}, ", "", "; ".join(done.stdout.split("\n")[:3])).strip("; ")
        yield f"Python {version} installs from the index", told, done.returncode == 0


def _clone(target: str) -> Callable[[Path], Iterator[Bar]]:
    def bar(folder: Path) -> Iterator[Bar]:
        place, started = folder / "clone", time.monotonic()
        if not place.exists():
            subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
        name, told, held = _command(f"bare clone: make {target}", ["make", target], place)
        yield name, f"{time.monotonic() - started:.0f} s; {told}", held

    return bar


def _command(name: str, command: list[str | Path], folder: Path = ROOT) -> Bar:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return name, (done.stdout.strip().splitlines() or [""])[-1], done.returncode == 0


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "solostream", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL, timeout=900)


BARS: dict[str, Callable[[Path], Iterator[Bar]]] = {
    "rows": _rows,
    "mistakes": _mistakes,
    "notebook": _tests("a notebook trains", "test_example_notebook.py"),
    "blocks": _tests("code blocks of README and docs", "test_blocks.py"),
    "rate": _endpoint("1,000 requests, one in three answered 429", "rate"),
    "vllm": _endpoint("eval of vLLM's server equals eval vllm:", "vllm"),
    "installs": _installs,
    "quickstart": _clone("quickstart"),
    "test": _clone("test"),
}
QUICK = ("rows", "mistakes", "notebook", "blocks", "rate")

if __name__ == "__main__":
    sys.exit(main())
