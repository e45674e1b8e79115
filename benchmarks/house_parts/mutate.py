"""Mutants made by a program: comparisons, operators, constants and conditions of the formulas, changed one at a time.

    python benchmarks/house_parts/mutate.py [--seconds 600] [--seed 0] [--only training/advantages/aspo.py]

(mutmut and cosmic-ray were not tried.) A random sample of the possible edits is
tried until the time is up, in a copy of the tree, each against the tests nearest to its file. Survivors are printed as
a line of the file, before and after; `docs/testing.md` says of each known one how it was killed or why it may live.
"""

from __future__ import annotations

import argparse
import ast
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from house_parts.mutants import FORMULAS, ROOT, copy_of_the_tree, passes

ESTIMATORS = "tests/training/advantages/test_estimators.py"
TOY = "tests/training/advantages/test_toy_policy.py"
TESTS = {
    "training/advantages/value_tracker.py": "tests/training/advantages/test_value_tracker.py " + FORMULAS,
    "training/advantages/base.py": "tests/training/advantages/test_advantage.py",
    "training/advantages/aspo.py": ESTIMATORS + " tests/training/advantages/test_advantage.py",
    "training/advantages/spo.py": f"{ESTIMATORS} {FORMULAS}",
    "training/advantages/grpo.py": ESTIMATORS,
    "training/advantages/rloo.py": ESTIMATORS,
    "training/advantages/reinforce.py": ESTIMATORS,
    "training/losses/ppo_clip.py": TOY,
    "training/losses/cispo.py": f"{TOY} {FORMULAS}",
    "training/losses/gspo.py": f"{TOY} {FORMULAS}",
    "training/losses/clip_cov.py": f"{TOY} {FORMULAS} tests/training/learner/test_gradients.py",
    "training/losses/kl_cov.py": TOY + " tests/training/learner/test_gradients.py",
    "training/losses/kl.py": TOY,
    "training/losses/tokens.py": TOY,
    "training/losses/aggregation.py": "tests/training/learner/test_learner.py",
    "training/rollouts/landed.py": "tests/training/rollouts/test_landed.py",
    "training/rollouts/collector.py": "tests/training/rollouts/test_collector.py " + FORMULAS,
    "envs/text/parse.py": "tests/envs/text",
    "agent/engines/hf/sampling.py": "tests/agent/engines/test_hf.py " + FORMULAS,
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def edits(tree: ast.Module) -> Iterator[tuple[ast.AST, str, object]]:
    """(node, attribute, its new value) of every possible mutant, without annotations and messages."""
    skip = {id(inner) for node in ast.walk(tree) for inner in _silent(node)}
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]]
        elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", SWAPS[type(node.op)]()
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield node, "op", ast.UAdd()
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, "value", not node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield node, "value", node.value + 1
        elif isinstance(node, ast.IfExp | ast.If | ast.While) and not isinstance(node.test, ast.Constant):
            yield node, "test", ast.UnaryOp(ast.Not(), node.test)


def _silent(node: ast.AST) -> Iterator[ast.AST]:
    """What no behaviour hangs on: annotations, raised messages, dataclass decorators, type aliases."""
    if isinstance(node, ast.Raise):
        yield from ast.walk(node)
    for name in ("annotation", "returns", "decorator_list"):
        found = getattr(node, name, None)
        for part in found if isinstance(found, list) else [found]:
            if isinstance(part, ast.AST):
                yield from ast.walk(part)


def mutated(source: str, number: int) -> tuple[str, str]:
    """(the source with mutant `number`, what changed)."""
    tree = ast.parse(source)
    node, attribute, value = list(edits(tree))[number]
    line = getattr(node, "lineno", 0)
    before = ast.unparse(node).splitlines()[0]
    setattr(node, attribute, value)
    return ast.unparse(ast.fix_missing_locations(tree)), f"{line}: {before}  ->  {ast.unparse(node).splitlines()[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(TESTS), help="a file; may be given again")
    options = parser.parse_args()
    chosen = options.only or sorted(TESTS)
    sites = [(f, i) for f in chosen for i in range(len(list(edits(ast.parse((ROOT / f).read_text())))))]
    random.Random(options.seed).shuffle(sites)
    end, tried, survivors = time.monotonic() + options.seconds, 0, 0
    with tempfile.TemporaryDirectory(prefix="solostream-mutants-") as folder:
        place = Path(folder)
        copy_of_the_tree(place)
        for name, number in sites:
            if time.monotonic() > end:
                break
            path = place / name
            sound = path.read_text(encoding="utf-8")
            source, what = mutated(sound, number)
            path.write_text(source, encoding="utf-8")
            try:
                alive = passes(place, TESTS[name])
            except RuntimeError:
                alive = False  # it does not even import
            path.write_text(sound, encoding="utf-8")
            tried, survivors = tried + 1, survivors + alive
            if alive:
                print(f"SURVIVED {name}:{what}", flush=True)
    print(f"{tried} of {len(sites)} possible mutants tried, {tried - survivors} killed, {survivors} survived")


if __name__ == "__main__":
    main()
