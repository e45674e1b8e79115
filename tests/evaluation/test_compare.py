"""Comparison against numbers worked out by hand and against other ways to compute them."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from synthetic_runs import Writer, tokenizer, write_evaluation

from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.evaluation.compare import compare, mcnemar, permutation

TOKENS = tokenizer()


def write(folder: Path, solved: dict[str, str]) -> Path:
    """solved: task -> one character a sample, "1" correct."""
    folder.mkdir()
    with (folder / "samples.jsonl").open("w") as file:
        for task, marks in solved.items():
            for mark in marks:
                writer = Writer(TOKENS, random.Random(0))
                writer.hear("user", task)
                writer.say("\\boxed{1}")
                file.write(writer.close(Task(task, "", ""), float(mark), answer=mark).to_json() + "\n")
    return folder


def test_flow_and_differences_by_hand(tmp_path: Path) -> None:
    a = write(tmp_path / "text", {"p": "11", "q": "10", "r": "00", "s": "00", "x": "11"})
    b = write(tmp_path / "tool", {"s": "00", "r": "01", "q": "00", "p": "01", "y": "11"})
    found = compare(a, b)
    assert found.names == ("text", "tool")
    assert (found.only_a, found.only_b, found.k) == (1, 1, 2)
    assert found.flow == {"preservation": 1, "expansion": 1, "shrinkage": 1, "unsolved": 1}
    assert {row.task_id: (row.c_a, row.c_b, row.difference) for row in found.rows} == {
        "p": (2, 1, -0.5), "q": (1, 0, -0.5), "r": (0, 1, 0.5), "s": (0, 0, 0.0),
    }  # fmt: skip
    assert found.difference["mean"] == -0.125
    assert found.mcnemar == {"only_a": 1, "only_b": 1, "p": 1.0}
    assert [row["mean"] for row in found.curves[0]] == [3 / 8, 0.5]
    assert found.scalar("avg") == (3 / 8, 0.25)
    assert found.scalar("pass@2") == (0.5, 0.5)
    at_one = compare(a, b, k=1)
    assert at_one.flow == {"preservation": 0, "expansion": 0, "shrinkage": 2, "unsolved": 2}


def test_mcnemar_is_the_binomial_tail() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(8, 2) == mcnemar(2, 8)


def test_permutation_is_naive_enumeration() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 4, 9):
        values = rng.choice([-0.5, 0.0, 0.25, 1.0], n)
        sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=n)]
        assert permutation(values) == pytest.approx(fmean(s >= abs(values.sum()) - 1e-9 for s in sums))


def test_random_permutation_agrees_with_the_exact_one() -> None:
    values = np.array([0.5] * 9 + [-0.5] * 4)
    assert permutation(values) == pytest.approx(mcnemar(9, 4), abs=0.01)
    assert permutation(np.ones(40)) < 1e-4
    assert permutation(np.zeros(20)) == 1.0


def test_a_better_policy_is_found_to_be_better(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", 40, 8, 0.3)
    b = write_evaluation(tmp_path / "b", 40, 8, 0.95, seed=1)
    found = compare(a, b)
    assert found.difference["low"] > 0
    assert found.difference["p"] < 0.001
    same = compare(a, a)
    assert same.difference == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert same.names[0] != same.names[1]
    assert same.flow["expansion"] == same.flow["shrinkage"] == 0


def test_bad_input_names_the_remedy(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"p": "11"})
    b = write(tmp_path / "b", {"q": "11"})
    with pytest.raises(UserError, match="no problem in common"):
        compare(a, b)
    with pytest.raises(UserError, match="use -k 2 or less"):
        compare(a, a, k=3)
    with pytest.raises(UserError, match="unknown metric 'acurracy'"):
        compare(a, a).scalar("acurracy")
    with pytest.raises(UserError, match="unknown metric 'pass@9'"):
        compare(a, a).scalar("pass@9")
    (a / "samples.jsonl").write_text(json.dumps({"half": 1}) + "\n")
    with pytest.raises(UserError, match="all 1 lines are damaged"):
        compare(a, b)
