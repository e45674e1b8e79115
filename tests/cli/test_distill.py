"""Rejection sampling, and the way back: what `distill` writes `sft` reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solostream.envs.data.traces import read_traces

PROBLEMS = [("What is 6 * 7?", 42), ("What is 2 * 3?", 6), ("What is 12 * 12?", 144), ("What is 5 * 5?", 99)]
ROOT = Path(__file__).parents[2]


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "solostream", "distill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


def test_right_samples_become_traces_that_can_be_learnt(tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    rows = [{"id": f"p{i}", "prompt": prompt, "answer": str(answer)} for i, (prompt, answer) in enumerate(PROBLEMS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "mine.jsonl"
    policy = "scripted:evaluation_policies:calculator"
    done = run(tmp_path, policy, "--data", str(data), "-k", "3", "--traces", str(out))
    assert done.returncode == 0, done.stderr
    assert "3 traces of 3 problems" in done.stdout  # equal samples count once, the wrong answer not at all
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[m["role"] for m in row["messages"]] for row in rows] == [
        ["system", "user", "assistant", "tool", "assistant"]
    ] * 3
    assert [row["messages"][1]["content"] for row in rows] == [p for p, _ in PROBLEMS[:3]]
    assert rows[0]["messages"][3]["content"] == "42"
    traces, bad, _ = read_traces(str(out), ("fence",), False)
    assert not bad
    assert [trace.outputs for trace in traces] == [("42",), ("6",), ("144",)]

    none = run(tmp_path, "scripted:evaluation_policies:guesser", "--data", str(data), "--tool-only")
    assert none.returncode == 2
    assert "no sample in" in none.stderr


def test_a_right_sample_that_made_up_an_output_is_no_trace(tmp_path: Path) -> None:
    """The answer is right and no tool spoke: who learns from it writes outputs."""
    rows = [{"id": f"p{i}", "prompt": prompt, "answer": str(answer)} for i, (prompt, answer) in enumerate(PROBLEMS[:3])]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "inventor.py").write_text(
        "def says(text):\n"
        "    if '6 * 7' in text:\n"
        "        return '```output\\n42\\n```\\nSo \\\\boxed{42}.'\n"
        "    return '\\\\boxed{6}' if '2 * 3' in text else 'The <output> is \\\\boxed{144}'\n"
    )
    done = run(tmp_path, "scripted:inventor:says", "--data", "problems.jsonl", "--traces", "mine.jsonl")
    assert "2 traces of 2 problems" in done.stdout, done.stderr
    _, bad, _ = read_traces(str(tmp_path / "mine.jsonl"), ("fence",), False)
    assert not bad


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    """Said before anything is played, in one line; what the same evaluation wrote is only brought up to date."""
    (tmp_path / "problems.jsonl").write_text(json.dumps({"prompt": PROBLEMS[0][0], "answer": "42"}) + "\n")
    (tmp_path / "notes.jsonl").write_text('{"mine": 1}\n')
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to("problems.jsonl")
    before = {path.name: path.read_text() for path in tmp_path.glob("*.jsonl") if path.is_file()}

    def made(traces: str, *more: str) -> subprocess.CompletedProcess[str]:
        policy = "scripted:evaluation_policies:calculator"
        return run(tmp_path, policy, "--data", "problems.jsonl", "--out", "e", "--traces", traces, *more)

    refused = {
        "problems.jsonl": "the file of the problems",
        "link.jsonl": "the file of the problems",
        "e/samples.jsonl": "where the samples are",
        "notes.jsonl": "name another --traces",
        "folder.jsonl": "is no file",
        "notes.jsonl/a.jsonl": "is no folder",
        "traces.json": "ends in .jsonl",
    }
    for place, why in refused.items():
        done = made(place)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert why in done.stderr
        assert not (tmp_path / "e").exists()
    assert {name: (tmp_path / name).read_text() for name in before} == before

    (tmp_path / "t.jsonl").touch()
    (tmp_path / "link.jsonl").unlink()
    (tmp_path / "link.jsonl").symlink_to("t.jsonl")
    assert made("link.jsonl").returncode == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    first = (tmp_path / "t.jsonl").read_text()
    more = {"prompt": "What is 2\u2028* 3?", "answer": "6"}
    with (tmp_path / "problems.jsonl").open("a") as file:
        file.write(json.dumps(more) + "\n")
    for _ in range(2):
        assert made("t.jsonl", "-k", "2").returncode == 0
        assert first in (tmp_path / "t.jsonl").read_text()
        assert (tmp_path / "t.jsonl").read_text().count("\n") == 2
    (tmp_path / "t.jsonl").write_text(first.replace("compute", "calculate"))  # a person's work
    done = made("t.jsonl")
    assert (done.returncode, "holds what e did not give it" in done.stderr) == (2, True)


def test_examples_before_the_problem_are_no_part_of_a_trace(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(
        "def policy(text):\n"
        "    return '\\\\boxed{42}' if text.count('|>tool') > 2 else '```python\\nprint(6 * 7)\\n```\\n'\n"
    )
    (tmp_path / "problems.jsonl").write_text(json.dumps({"prompt": PROBLEMS[0][0], "answer": "42"}))
    options = json.dumps({"few_shot": 2, "system_prompt": "Be brief."})
    done = run(tmp_path, "scripted:shown:policy", "--data", "problems.jsonl", "--env-options", options,
               "--traces", "few.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "few.jsonl").read_text().splitlines())
    assert row["messages"][:2] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": PROBLEMS[0][0]},
    ]
    assert [m["role"] for m in row["messages"][2:]] == ["assistant", "tool", "assistant"]


def test_what_is_imitated_is_never_what_tests() -> None:
    from solostream.cli.distill import _of_training
    from solostream.evaluation.options import EvalOptions

    chosen = lambda **given: _of_training(EvalOptions("model", **given)).split
    assert chosen(data="reasoning-gym:gcd") == "train"
    assert chosen(data="GSM8K") == "train"
    assert chosen(data="gsm8k", split="test") == "test"
    assert chosen(data="dapo-math-17k") is None
    assert chosen() is None
    for name in ("aime25", "MATH-500"):
        with pytest.warns(UserWarning, match=f"{name} is there to test models"):
            assert chosen(data=name) is None


def test_a_runs_own_model_is_not_taught_what_tests_it(tmp_path: Path) -> None:
    from solostream.agent.run_settings import RunSettings
    from solostream.cli.distill import distill
    from solostream.errors import UserError
    from solostream.evaluation.options import EvalOptions

    RunSettings("mine", "solostream/Math-v0", {"tasks": "sample"}, 1.0, 1.0, 0, 64, 256).write(tmp_path)
    with pytest.raises(UserError, match="needs --data"):
        distill(EvalOptions(str(tmp_path)))
