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
SURVIVED, UNTESTED = 0, (5, 33)  # mutmut's own exit codes: all tests passed; no test runs the line
ORIGINAL = "__mutmut_orig"


def copy_without_links(place: Path, parts: list[str]) -> None:
    copy_of_the_tree(place)
    for link in sorted((place / "solostream").iterdir()):
        if link.is_symlink():
            target = link.resolve()
            link.unlink()
            shutil.copytree(target, link)
    plugins = [word for name in PLUGINS for word in ("-p", name)]
    settings = {
        "source_paths": ["solostream"],
        "only_mutate": [module for part in parts for module in PARTS[part][0]],
        "also_copy": ["benchmarks", "configs", "docs", "examples", "README.md"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", *plugins, *(f"--deselect={test}" for test in SLOW)],
        "pytest_add_cli_args_test_selection": list(dict.fromkeys(test for part in parts for test in PARTS[part][1])),
        "process_isolation": "forkserver",  # torch's threads do not survive a fork
    }
    with (place / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n[tool.mutmut]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))


def mutmut(place: Path, *names: str) -> None:
    """Generate what is not there yet, and run the mutants `names`."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and (names[0] != "none" or not results(place)):
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])


def results(place: Path) -> dict[str, dict[str, int | None]]:
    """File -> {mutant: mutmut's exit code, None where it has not run}."""
    name = lambda path: str(path.relative_to(place / "mutants")).removesuffix(".meta")
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))
    return {name(path): read(path)["exit_code_by_key"] for path in sorted((place / "mutants").rglob("*.meta"))}


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
        copy_without_links(place, options.part or list(PARTS))
        mutmut(place, "none")
        versions = {file: functions(place, file) for file in results(place) if fnmatch(file, options.only)}
        chosen, messages = choose(place, versions, options.every, options.offset)
        print(f"{len(chosen)} mutants chosen; {messages} that change only a message left out", flush=True)
        mutmut(place, *chosen)
        report(results(place), versions)


def choose(place: Path, versions: dict[str, dict[str, ast.AST]], every: int, offset: int) -> tuple[list[str], int]:
    """(the mutants to try, how many change only a message)."""
    chosen, messages = list[str](), 0
    for file, of_file in versions.items():
        mutants = list(results(place)[file])
        worth = [one for one in mutants if not message(change(of_file, one))]
        messages += len(mutants) - len(worth)
        chosen += worth[offset::every]
    return chosen, messages


def report(found: dict[str, dict[str, int | None]], versions: dict[str, dict[str, ast.AST]]) -> None:
    for file, of_file in versions.items():
        ran = {name: code for name, code in found[file].items() if code is not None}
        kinds = Counter(
            "untested" if c in UNTESTED else "survived" if c == SURVIVED else "killed" for c in ran.values()
        )
        print(
            f"{file}: {len(ran)} tried, "
            + ", ".join(f"{kinds[kind]} {kind}" for kind in ("killed", "survived", "untested"))
        )
        for name in (name for name, code in ran.items() if code == SURVIVED or code in UNTESTED):
            print("\n    ".join([f"  {name}", *(line for line in change(of_file, name) if line[0] != "@")]))


if __name__ == "__main__":
    main()
