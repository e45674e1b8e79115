"""mutmut over tracker, advantages, losses, collector, parser and sampling, against the tests nearest to them.

    pip install "mutmut>=3.8"
    python benchmarks/house_parts/mutate.py [--part losses] [--every 3] [--offset 0] [--only '*/stages/*']

mutmut names a module by its path, so it needs a tree without the links of `solostream/`: this works in a copy where
each link is the folder that it points to. `--every k` tries each k-th mutant of every file. What changes only the
message of an error is left out, and is counted. Survivors are printed as the lines before and after; `docs/testing.md`
says of each known one how it was killed or why it may live.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from house_parts.mutants import copy_of_the_tree

ADVANTAGES = ("tests/test_formulas.py", "tests/training/advantages")
# What is mutated, and the tests nearest to it: a part is tried alone with `--part`, with its own tests only.
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "advantages": (("solostream/training/advantages/*",), ADVANTAGES),
    "credit": (
        ("solostream/training/advantages/credit/*",),
        ("tests/training/advantages/test_credit.py", "tests/training/advantages/test_credit_toys.py"),
    ),
    "trees": (("solostream/training/advantages/tree/*",), ("tests/training/advantages/tree",)),
    "passk": (
        ("solostream/training/advantages/passk.py", "solostream/training/advantages/stages/tool_cost.py"),
        ("tests/training/advantages/test_passk_and_cost.py",),
    ),
    "losses": (("solostream/training/losses/*",), ("tests/test_formulas.py", "tests/training/losses")),
    "collector": (
        ("solostream/training/rollouts/collector.py", "solostream/training/rollouts/landed.py"),
        (
            "tests/test_formulas.py",
            "tests/training/rollouts/test_collector.py",
            "tests/training/rollouts/test_landed.py",
            "tests/training/rollouts/test_trees_landing.py",
        ),
    ),
    "samplers": (
        ("solostream/training/rollouts/samplers/*", "solostream/training/rollouts/task_sampler.py"),
        ("tests/training/rollouts/test_samplers.py", "tests/training/rollouts/test_task_sampler.py"),
    ),
    "parser": (
        ("solostream/envs/text/parse.py", "solostream/envs/text/near_miss.py"),
        (
            "tests/envs/text/test_parse.py",
            "tests/envs/text/test_parse_turns.py",
            "tests/envs/text/test_syntaxes.py",
        ),
    ),
    "sampling": (
        ("solostream/agent/engines/hf/sampling.py",),
        (
            "tests/test_formulas.py",
            "tests/agent/engines/test_sampling.py",
            "tests/agent/engines/test_hf.py::test_uniform_numbers_are_uniform_and_depend_on_both_arguments",
            "tests/agent/engines/test_hf.py::test_sampling_by_hand",
            "tests/agent/engines/test_hf.py::test_tokens_of_probability_zero_are_never_drawn",
            "tests/agent/engines/test_hf.py::test_what_top_k_and_top_p_keep_is_what_they_are_defined_to_keep",
        ),
    ),
}
# Left out for their time: a survivor costs every test that runs it, and these are half of all; they would kill more.
SLOW = (
    "tests/envs/text/test_parse.py::test_hostile_text_takes_linear_time",
    "tests/envs/text/test_parse.py::test_any_text_in_any_pieces_parses_alike",
    "tests/envs/text/test_syntaxes.py::test_every_syntax_is_found_through_the_registry_and_one_from_outside_plays",
    "tests/envs/text/test_syntaxes.py::test_a_thought_that_a_call_interrupted_goes_on",
    "tests/training/rollouts/test_samplers.py::test_hints_and_reformulations_reach_what_is_never_solved_without",
    "tests/training/advantages/test_passk_and_cost.py::test_with_the_price_easy_problems_are_answered_at_once_and_hard_ones_with_the_tool",
    "tests/training/advantages/test_passk_and_cost.py::test_passk_keeps_the_second_way_where_grpo_gives_it_up",
    "tests/training/advantages/test_credit_toys.py::test_bnpo_has_the_least_variance_of_all_beta_densities_and_less_than_none",
    "tests/training/advantages/test_credit_toys.py::test_seed_learns_what_is_within_reach_and_follows_luck_less",
    "tests/training/advantages/test_toy_policy.py::test_spo_is_unbiased_whatever_the_baseline",
    "tests/training/advantages/test_toy_policy.py::test_a_baseline_that_saw_the_outcome_is_biased",
    "tests/training/advantages/test_toy_policy.py::test_rloo_is_unbiased_and_the_group_mean_is_not",
)
# pytest looks for plugins in everything that is installed, which takes longer than most tests: those of ours are named.
PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "xdist.plugin")
PYTEST = [
    *("-p", "no:cacheprovider"),
    *(word for name in PLUGINS for word in ("-p", name)),
    *(f"--deselect={test}" for test in SLOW),
]
SURVIVED, UNTESTED = 0, 33  # exit codes: all tests passed; no test runs the function
ORIGINAL, SUFFIX = "__mutmut_orig", "__mutmut_"
STATS = "mutants/mutmut-stats.json"


def copy_without_links(place: Path, parts: list[str]) -> None:
    copy_of_the_tree(place)
    for link in sorted((place / "solostream").iterdir()):
        if link.is_symlink():
            target = link.resolve()
            link.unlink()
            shutil.copytree(target, link)
    settings = {
        "source_paths": ["solostream"],
        "only_mutate": [module for part in parts for module in PARTS[part][0]],
        "also_copy": ["benchmarks", "configs", "docs", "examples", "README.md"],
        "pytest_add_cli_args": PYTEST,
        "pytest_add_cli_args_test_selection": tests_of(parts),
    }
    with (place / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n[tool.mutmut]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))


def tests_of(parts: list[str]) -> list[str]:
    """The tests nearest to all of `parts`, as pytest is given them."""
    return list(dict.fromkeys(test for part in parts for test in PARTS[part][1]))


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }


def make(place: Path) -> None:
    """Let mutmut write the mutants, and run all tests once to see which functions each of them reaches."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", "none"]  # no mutant is called that
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, check=False)
    if not (place / STATS).exists() or not results(place):
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])


def run(place: Path, parts: list[str], mutants: list[str]) -> dict[str, int]:
    """Mutant -> exit code."""
    stats = json.loads((place / STATS).read_text(encoding="utf-8"))
    reach: dict[str, list[str]] = stats["tests_by_mangled_function_name"]
    seconds: dict[str, float] = stats["duration_by_test"]
    tests = {name: sorted(reach.get(name.rpartition(SUFFIX)[0], ()), key=lambda one: seconds[one]) for name in mutants}
    found = {name: UNTESTED for name, reached_by in tests.items() if not reached_by}
    chosen, log = place / "chosen.json", place / "found.jsonl"
    chosen.write_text(json.dumps({name: tests[name] for name in mutants if name not in found}), encoding="utf-8")
    runner = Path(__file__).with_name("mutant_runner.py")
    command = [sys.executable, str(runner), str(chosen), str(log), "-q", "--rootdir=.", *PYTEST, *tests_of(parts)]
    done = subprocess.run(
        command, cwd=place / "mutants", env=environment(), capture_output=True, text=True, check=False
    )
    lines = log.read_text(encoding="utf-8").splitlines()
    if len(lines) + len(found) != len(mutants):
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return found | dict(map(json.loads, lines))


def results(place: Path) -> dict[str, list[str]]:
    """File -> its mutants."""
    name = lambda path: str(path.relative_to(place / "mutants")).removesuffix(".meta")
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    # While tests run, a mutant of a package goes by the package's name.
    keys = lambda path: [key.replace("__init__.", "") for key in read(path)]
    found = {name(path): keys(path) for path in sorted((place / "mutants").rglob("*.meta"))}
    return {file: mutants for file, mutants in found.items() if mutants}


def functions(place: Path, file: str) -> dict[str, ast.AST]:
    """Every version of every function in a file of mutants, by mutmut's name for it."""
    tree = ast.parse((place / "mutants" / file).read_text(encoding="utf-8"))
    return {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def change(versions: dict[str, ast.AST], mutant: str) -> list[str]:
    """The statements that a mutant changed, as "- before" and "+ after"."""
    name = mutant.rpartition(".")[2]
    original = re.sub(r"__mutmut_\d+$", ORIGINAL, name)
    before, after = (ast.unparse(versions[which]).replace(which, "f").splitlines() for which in (original, name))
    return [line[0] + " " + line[1:].strip() for line in difflib.unified_diff(before, after, n=0, lineterm="")][2:]


def message(lines: list[str]) -> bool:
    """Whether this is what an error says and no more."""
    return all(line.startswith(("- raise ", "+ raise ", "@")) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part (may be given again)")
    parser.add_argument("--every", type=int, default=1, help="try each k-th mutant of a file")
    parser.add_argument("--offset", type=int, default=0, help="from this one on")
    parser.add_argument("--only", default="*", help="files, as a pattern")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="solostream-mutants-") as folder:
        place = Path(folder)
        parts = options.part or list(PARTS)
        copy_without_links(place, parts)
        make(place)
        versions = {file: functions(place, file) for file in results(place) if fnmatch(file, options.only)}
        chosen, messages = choose(place, versions, options.every, options.offset)
        print(f"{len(chosen)} mutants chosen; {messages} that change only a message left out", flush=True)
        report(run(place, parts, chosen), versions)


def choose(place: Path, versions: dict[str, dict[str, ast.AST]], every: int, offset: int) -> tuple[list[str], int]:
    """(the mutants to try, how many change only a message)."""
    chosen, messages = list[str](), 0
    for file, of_file in versions.items():
        mutants = results(place)[file]
        worth = [one for one in mutants if not message(change(of_file, one))]
        messages += len(mutants) - len(worth)
        chosen += worth[offset::every]
    return chosen, messages


def report(codes: dict[str, int], versions: dict[str, dict[str, ast.AST]]) -> None:
    kinds = {SURVIVED: "survived", UNTESTED: "untested"}
    for file, of_file in versions.items():
        module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        ran = {name: code for name, code in codes.items() if name.rpartition(".")[0] == module}
        count = Counter(kinds.get(code, "killed") for code in ran.values())
        told = ", ".join(f"{count[kind]} {kind}" for kind in ("killed", "survived", "untested"))
        print(f"{file}: {len(ran)} tried, {told}")
        for name in (name for name, code in ran.items() if code in kinds):
            lines = [line for line in change(of_file, name) if line[0] != "@"]
            print("\n    ".join([f"  {kinds[codes[name]]} {name}", *lines]))


if __name__ == "__main__":
    main()
