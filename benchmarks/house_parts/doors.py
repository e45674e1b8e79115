"""Files to touch to add one of each kind: tried, not counted by hand.

Outside: the example package is checked from its own folder; the tree is not touched. Inside: each of its components is
put into a copy of the tree, as a new file and a line of `registry.BUILT_IN`, checked there by that name, and the files
that differ from the tree are counted.

    python benchmarks/house_parts/doors.py
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "solostream-everything"
PACKAGE = "solostream_everything"
# kind -> (module of the example, object, the room that it moves into)
KINDS = {
    "sandbox": ("playing", "quiet", "sandbox"),
    "tool": ("playing", "Double", "envs/tools"),
    "environment": ("playing", "Echo", "envs"),
    "reward": ("playing", "brief", "envs/rewards"),
    "answer": ("playing", "last_word", "envs/text"),
    "syntax": ("playing", "Run", "envs/text/syntax"),
    "layout": ("playing", "Pairs", "envs/data/layouts"),
    "data": ("playing", "Sums", "envs/data/generators"),
    "rollout": ("playing", "twice", "agent"),
    "advantage": ("learning", "Sign", "training/advantages"),
    "loss": ("learning", "Scaled", "training/losses"),
    "sampler": ("learning", "Backwards", "training/rollouts"),
    "engine": ("learning", "counting", "agent/engines"),
    "metric": ("watching", "turns", "evaluation"),
    "tracker": ("watching", "Lines", "training/observers"),
    "callback": ("watching", "Enough", "training/observers"),
}
Row = tuple[str, int, int, bool]  # kind, files outside, files inside, both kept the contract


def rows() -> Iterator[Row]:
    """One a kind, as it is done."""
    model = str(_model())
    for kind in KINDS:
        yield _row(kind, model)


def _row(kind: str, model: str) -> Row:
    module, name, room = KINDS[kind]
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(
            ROOT,
            tree,
            symlinks=True,
            ignore=shutil.ignore_patterns(".git", ".venv", "build", "runs", "__pycache__", ".*_cache"),
        )
        outside = _check(kind, f"{PACKAGE}.{module}:{name}", model, EXAMPLE, tree)
        untouched = len(_touched(tree))
        file = f"added_{kind}"
        shutil.copy(EXAMPLE / PACKAGE / f"{module}.py", tree / room / f"{file}.py")
        book = tree / "solostream" / "registry.py"
        place = f"solostream.{room.replace('/', '.')}.{file}:{name}"
        text, head = book.read_text(), f'    "{kind}": {{'
        assert text.count(head) >= 1, f"no {kind} in BUILT_IN"
        book.write_text(text.replace(head, f'{head}\n        "added": "{place}",', 1))
        inside = _check(kind, "added", model, Path(scratch), tree)
        return kind, untouched, len(_touched(tree)), outside and inside


def _check(kind: str, spec: str, model: str, cwd: Path, tree: Path) -> bool:
    command = ["check", kind, f"{spec}:{model}" if kind == "engine" else spec]
    if kind == "sandbox":  # one group of the suite: what it is about here is whether it is found and opened
        command = ["sandbox", "check", spec, "--only", "protocol"]
    code = "import sys; from solostream.cli.main import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *command], cwd=cwd, env=env, capture_output=True, text=True
    )
    if done.returncode:
        print(f"{kind} {spec}: {done.stdout[-400:]}{done.stderr[-400:]}", file=sys.stderr)
    return done.returncode == 0


def _touched(tree: Path) -> list[str]:
    """Files of the copy that are new or differ, without what Python and the runs leave behind."""
    found = []
    for path in sorted(tree.rglob("*.py")):
        place = path.relative_to(tree)
        if place.parts[0] == "solostream" and len(place.parts) > 2:
            continue  # seen through a link to its floor
        if not (ROOT / place).exists() or not filecmp.cmp(path, ROOT / place, shallow=False):
            found.append(str(place))
    return found


def _model() -> Path:
    """A tiny model on disk, for the engine's contract."""
    from solostream.training.config import BuildConfig
    from solostream.training.run.model import build_model, build_tokenizer

    folder = Path(tempfile.mkdtemp(prefix="solostream-doors-"))
    tokenizer = build_tokenizer(["What is 6 times 7?"] * 50, 420)
    build_model(BuildConfig(hidden_size=32, layers=1, heads=2, kv_heads=1, mlp_size=64), tokenizer, 0).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def show() -> bool:
    """Print the table as it is found; whether every kind holds its bar."""
    print("| to add | files outside | files inside | contract kept |\n|---|---|---|---|")
    good = True
    for kind, outside, inside, kept in rows():
        print(f"| {kind} | {outside} | {inside} | {'yes' if kept else 'NO'} |", flush=True)
        good &= kept and outside == 0 and inside <= 2
    return good


if __name__ == "__main__":
    sys.exit(not show())
