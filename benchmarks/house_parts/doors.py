"""Files to touch to add one of each kind: tried, not counted by hand.

Outside: the example package is checked from its own folder; the tree is not touched. Inside: each of its components is
put into a copy of the tree, as a new file and a line of `registry.BUILT_IN`, checked there by that name, and the files
that differ from the copy as it was are counted.

    python benchmarks/house_parts/doors.py
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from house_parts.mutants import ROOT, copy_of_the_tree

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
LIBRARIES = ["torch", "transformers", "gymnasium", "sympy", "pydantic", "tyro"]  # what a check waits for


def rows() -> Iterator[Row]:
    """One a kind, as it is done."""
    model = str(_model())
    # Two checks a kind, each in a process of its own that has seen no component yet. They are forked from one that has
    # loaded the libraries, which is nine tenths of the time of a check.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory(prefix="solostream-doors-") as scratch:
        tree = Path(scratch) / "tree"
        copy_of_the_tree(tree)
        before = _contents(tree)
        for kind in KINDS:
            yield _row(kind, model, tree, before, processes)


def _row(kind: str, model: str, tree: Path, before: Mapping[Path, bytes], processes: ForkServerContext) -> Row:
    module, name, room = KINDS[kind]
    example = tree / EXAMPLE.relative_to(ROOT)
    outside = _check(kind, f"{PACKAGE}.{module}:{name}", model, example, tree, processes)
    untouched = len(_touched(tree, before))

    file = tree / room / f"added_{kind}.py"
    shutil.copy(example / PACKAGE / f"{module}.py", file)
    book = tree / "solostream" / "registry.py"
    text, head = book.read_text(encoding="utf-8"), f'    "{kind}": {{'
    if text.count(head) != 1:
        raise RuntimeError(f"registry.BUILT_IN has {text.count(head)} entries for {kind}")
    place = f"solostream.{room.replace('/', '.')}.{file.stem}:{name}"
    book.write_text(text.replace(head, f'{head}\n        "added": "{place}",'), encoding="utf-8")
    inside = _check(kind, "added", model, tree.parent, tree, processes)
    touched = len(_touched(tree, before))

    file.unlink()
    book.write_text(text, encoding="utf-8")
    return kind, untouched, touched, outside and inside


def _check(kind: str, spec: str, model: str, cwd: Path, tree: Path, processes: ForkServerContext) -> bool:
    command = ["check", kind, f"{spec}:{model}" if kind == "engine" else spec]
    if kind == "sandbox":  # one group of the suite: what it is about here is whether it is found and opened
        command = ["sandbox", "check", spec, "--only", "protocol"]
    said = tree.parent / "said"
    process = processes.Process(target=_run, args=(command, cwd, tree, said))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
    if process.exitcode:
        print(f"{kind} {spec}: {said.read_text(encoding='utf-8')[-800:]}", file=sys.stderr)
    return process.exitcode == 0


def _run(command: list[str], cwd: Path, tree: Path, said: Path) -> None:
    """In the new process: the command `solostream`, of the copy, run in the folder `cwd`."""
    os.chdir(cwd)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["PYTHONPATH"] = str(tree)  # of what this starts in its turn
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(tree)]
    from solostream.cli.main import main

    sys.argv = ["solostream", *command]
    sys.exit(main())


def _contents(tree: Path) -> dict[Path, bytes]:
    """Every Python file of the copy, once."""
    return {
        path: path.read_bytes()
        for path in sorted(tree.rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents)
    }


def _touched(tree: Path, before: Mapping[Path, bytes]) -> list[Path]:
    now = _contents(tree)
    return [path for path in {*before, *now} if before.get(path) != now.get(path)]


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
