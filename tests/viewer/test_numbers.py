"""The numbers of the viewer's pages against a full read; what is exported reads back."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from synthetic_runs import Writer, run_code, tokenizer, training_records, write_training_run

from solostream.agent.trajectory import Trajectory
from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.evaluation import writer
from solostream.evaluation.tool_use import observe
from solostream.sandbox.types import CodeError
from solostream.viewer import aggregates, export, overview
from solostream.viewer.index import Index
from solostream.viewer.metric_columns import RunMetrics
from solostream.viewer.report import charts, first_page
from solostream.viewer.report.page import number, percent
from solostream.viewer.runs import Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_run(tmp_path_factory.mktemp("runs") / "run", 330, problems=30, per_step=50)


@pytest.fixture(scope="module")
def index(run: Path) -> Index:
    made = Index(run / "trajectories.jsonl")
    while made.refresh(40):
        pass
    return made


@pytest.fixture(scope="module")
def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    return [line for line in lines if "turns" in line]


def errors_of(record: dict) -> tuple[str, ...]:
    return observe(Trajectory.from_dict(record)).errors


NARROWED = {
    ("step", "3"): lambda r: r["step"] == 3,
    ("ending", "turn_limit"): lambda r: r["ending"] == "turn_limit",
    ("source", "synthetic"): lambda r: r["source"] == "synthetic",
    ("kind", "long"): lambda r: r["kind"] == "long",
    ("error", "NameError"): lambda r: "NameError" in errors_of(r),
    ("error", "timeout"): lambda r: "timeout" in errors_of(r),
    ("task", "mod-00007"): lambda r: r["task_id"] == "mod-00007",
}


@pytest.mark.parametrize("which", NARROWED, ids=lambda which: "=".join(which))
def test_narrowing_equals_a_full_read(index: Index, records: list[dict], which: tuple[str, str]) -> None:
    expected = [i for i, r in enumerate(records) if NARROWED[which](r)]
    assert expected
    narrow = dict([which])
    assert [row["id"] for row in index.page(limit=500, narrow=narrow)["rows"]] == expected
    wrong = [i for i in expected if records[i]["reward"] <= 0.5]
    assert index.page(["wrong"], narrow=narrow)["total"] == len(wrong) == index.counts(narrow=narrow)["wrong"]


def test_what_one_can_narrow_by_is_what_there_is(index: Index, records: list[dict]) -> None:
    names = {name for r in records for name in errors_of(r)}
    endings = sorted({r["ending"] for r in records})
    expected = {
        "steps": [0, 6],
        "sources": ["synthetic"],
        "kinds": ["long", "prime", "short"],
        "endings": endings,
        "errors": sorted(names),
    }
    assert index.choices() == expected
    for name, value in (("step", "three"), ("step", "9" * 30), ("level", "2")):
        with pytest.raises(UserError):
            index.page(narrow={name: value})
    assert index.page(narrow={"error": "%"})["total"] == 0


@pytest.mark.parametrize("descending", [False, True])
def test_windows_of_the_whole_run_have_no_gap(index: Index, descending: bool) -> None:
    ids = [
        row["id"] for at in range(0, 330, 70) for row in index.page(descending=descending, offset=at, limit=70)["rows"]
    ]
    assert ids == sorted(range(330), reverse=descending)
    assert index.page(offset=330)["rows"] == []


def test_there_are_never_more_errors_than_calls(tmp_path: Path) -> None:
    """Three executed calls of which two failed, and two that were never run."""
    writer = Writer(tokenizer(), random.Random(0))
    writer.hear("user", "what?")
    broken = run_code("x", error=CodeError("NameError", "x", "NameError: x"), status="error")
    for execution in (broken, None, run_code("2", out="2"), None, broken):
        writer.say("so ", "x", execution)
    one = writer.close(Task("t", "", "1"), 0.0, "turn_limit")
    (tmp_path / "trajectories.jsonl").write_text(one.to_json() + "\n")
    index = Index(tmp_path / "trajectories.jsonl")
    index.refresh()
    (row,) = index.page()["rows"]
    assert (row["passed"], row["errors"]) == (1, 4)  # a page shows passed + errors calls
    assert row["error_names"] == "NameError|not run|not run|NameError"
    assert aggregates.errors(index)["totals"] == [("NameError", 2), ("not run", 2)]


def test_problems_are_listed_hardest_first(index: Index, records: list[dict]) -> None:
    rewards: dict[str, list[float]] = {}
    for record in records:
        rewards.setdefault(record["task_id"], []).append(record["reward"])
    listed = index.tasks(1000)
    assert {row["task_id"]: pytest.approx(row["reward"]) for row in listed} == {t: fmean(r) for t, r in rewards.items()}
    assert [row["reward"] for row in listed] == sorted(row["reward"] for row in listed)
    for row in listed:
        assert records[row["row"]]["task_id"] == row["task_id"]
        assert row["attempts"] == len(rewards[row["task_id"]])


def test_the_tracker_in_numbers(index: Index, records: list[dict]) -> None:
    found = aggregates.tracker(index)
    pairs = [(r["dispatch"]["value"], r["reward"]) for r in records]
    assert found is not None
    assert found["trajectories"] == 330
    assert found["brier"] == pytest.approx(fmean((v - r) ** 2 for v, r in pairs))
    mean = fmean(r for _, r in pairs)
    assert found["variance"][0] == pytest.approx(fmean((r - mean) ** 2 for _, r in pairs))
    surprise = fmean(r - v for v, r in pairs)
    assert found["variance"][1] == pytest.approx(fmean((r - v - surprise) ** 2 for v, r in pairs))
    third = [(v, r) for v, r in pairs if 0.2 <= v < 0.3]
    assert (fmean(v for v, _ in third), fmean(r for _, r in third), len(third)) in [
        (pytest.approx(v), pytest.approx(r), n) for v, r, n in found["calibration"]
    ]
    assert found["steps"][0] == list(range(7))
    assert found["steps"][2][4] == pytest.approx(fmean(r["reward"] for r in records if r["step"] == 4))
    last = {r["task_id"]: r["dispatch"]["value"] for r in records}
    assert found["values"] == [Counter(min(int(v * 20), 19) for v in last.values())[i] for i in range(20)]
    assert sum(found["drawn"]) == 330


def test_errors_over_steps(index: Index, records: list[dict]) -> None:
    found = aggregates.errors(index)
    names = Counter(name for r in records for name in errors_of(r))
    assert dict(found["totals"]) == dict(names)
    i = found["names"].index("NameError") + 1
    of_step = [r for r in records if r["step"] == 1]
    expected = sum(errors_of(r).count("NameError") for r in of_step) / len(of_step)
    assert found["steps"][i][1] == pytest.approx(expected)


def test_metrics_come_a_row_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = RunMetrics(path)
    assert metrics.since({}) == {"born": 0, "phases": {}}
    rows = [{"phase": "rl", "step": 1, "a": 0.5}, {"phase": "eval", "step": 1, "accuracy": 0.2}]
    rows += [{"phase": "rl", "step": 2, "a": None, "b": 3}, {"phase": "rl", "step": 3, "a": 1.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"phase": "rl", "st')
    rl = metrics.since({})["phases"]["rl"]
    assert rl == {"start": 0, "columns": {"a": [0.5, None, 1.5], "b": [None, 3, None], "step": [1, 2, 3]}}
    with path.open("a") as file:
        file.write('ep": 4, "b": 7}\n{broken\n')
    assert metrics.since({"rl": 3})["phases"]["rl"]["columns"] == {"a": [None], "b": [7], "step": [4]}
    draft = tmp_path / "draft"  # a resumed run writes what it keeps anew
    draft.write_text(json.dumps(rows[0]) + "\n")
    draft.replace(path)
    assert metrics.since({"rl": 4})["phases"] == {"rl": {"start": 0, "columns": {"a": [0.5], "step": [1]}}}


def test_what_the_start_page_says_of_a_run(run: Path) -> None:
    config = '[run]\nsteps = 9\ntags = ["first"]\n[model]\npath = "tiny"\n[data]\npath = "gsm8k"\n'
    (run / "config.toml").write_text(config)
    found = overview.facts(run, RunMetrics(run / "metrics.jsonl"))
    shown = {k: found[k] for k in ("kind", "model", "data", "steps", "planned", "before", "after", "status", "tags")}
    assert shown == {
        "kind": "training", "model": "tiny", "data": "gsm8k", "steps": 6, "planned": 9, "before": 0.25, "after": 0.75,
        "status": "finished", "tags": ["first"],
    }  # fmt: skip
    assert overview.flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_a_change_is_judged_by_problem_where_the_same_problems_were_played(tmp_path: Path) -> None:
    """Ten problems, one of which is newly solved. A bootstrap draws that one 0 to 3 times out of ten within its 95 %:
    P(X ≤ 0) = 0.349 and P(X ≤ 2) = 0.930 < 0.975 ≤ P(X ≤ 3) = 0.987 for X ~ B(10, 0.1)."""
    row = {"phase": "eval", "time": 1.0, "accuracy_greedy": 0.5}
    measured = [{"accuracy": 0.6, "accuracy_low": 0.3, "accuracy_high": 0.9},
                {"accuracy": 0.7, "accuracy_low": 0.4, "accuracy_high": 0.9}]  # fmt: skip
    lines = [json.dumps({**row, "step": step, **one}) for step, one in zip((0, 20), measured, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    def told() -> list[tuple]:
        rows = overview.before_and_after(RunMetrics(tmp_path / "metrics.jsonl"), tmp_path)
        return [tuple(r[k] for k in ("change", "change_low", "change_high", "paired")) for r in rows]

    # Without rewards by problem the two stand apart: 0.1 − √(0.3² + 0.3²) and 0.1 + √(0.2² + 0.3²).
    apart = told()
    assert apart[0] == pytest.approx((0.1, 0.1 - 0.3 * 2**0.5, 0.1 + 0.13**0.5, 0))
    assert apart[1] == pytest.approx((0.0, None, None, 0))  # no interval was written

    rewards = {f"p{i}": float(i < 6) for i in range(10)}
    written = [{"step": 0, "rewards": rewards}, {"step": 20, "rewards": {**rewards, "p3": 0.0}}]
    written.append({"step": 20, "rewards": {**rewards, "p6": 1.0}})  # of a resumed run, which counts
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written) + '{"step": 4')
    assert told()[0] == pytest.approx((0.1, 0.0, 0.3, 10))
    assert told()[1] == apart[1]


def test_before_is_the_first_evaluation_also_where_it_had_no_number(tmp_path: Path) -> None:
    """No call before training: nothing that a later evaluation measured stands in its place."""
    calls = [None, 34.0, 12.5, None]
    lines = [{"phase": "eval", "step": i, "accuracy": 0.1 * i, "first_call_token": at} for i, at in enumerate(calls)]
    for until, after in ((3, 12.5), (4, None)):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines[:until]))
        rows = overview.before_and_after(RunMetrics(tmp_path / "metrics.jsonl"), tmp_path)
        calls_row = next(row for row in rows if "first call" in row["label"])
        assert [calls_row[k] for k in ("before", "after", "change")] == [None, after, None]
        told = next(row for row in rows if "accuracy" in row["label"])
        assert [told["before"], told["after"]] == pytest.approx([0.0, 0.1 * (until - 1)])


def test_the_status_is_the_lock_s_and_not_a_guess(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[run]\nsteps = 9\nprice_per_hour = 1.8\n")
    rows = [{"phase": "rl", "step": step, "time": 1000.0 + 50 * step} for step in range(5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def status() -> str:
        return overview.facts(tmp_path, RunMetrics(tmp_path / "metrics.jsonl"))["status"]

    assert status() == "unknown"  # nobody ever held the folder
    with writer.locked(tmp_path):
        assert status() == "running"  # though its files are of 1970
    assert status() == "stopped"
    facts = overview.facts(tmp_path, RunMetrics(tmp_path / "metrics.jsonl"))
    assert facts["writer"].startswith(f"process {os.getpid()} on ")
    assert facts["cost"] == pytest.approx(200 / 3600 * 1.8)  # of the 200 s that its steps took so far
    elsewhere = {"process": 7, "host": "another", "boot": "b", "started": 1.0}
    (tmp_path / ".lock").write_text(json.dumps(elsewhere))
    assert status() == "unknown"  # its lock cannot be seen from here
    (tmp_path / "summary.json").write_text('{"wall_s": 5}')
    assert status() == "finished"
    with writer.locked(tmp_path):
        assert status() == "running"  # it is made longer


def test_a_process_that_is_killed_gives_its_folder_back(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from solostream.evaluation.writer import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    child = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert writer.seen(tmp_path)[0] == "writing"
        with pytest.raises(UserError, match=rf"is being written \(process {other.pid} on .*\): wait for it"):
            writer.locked(tmp_path).__enter__()
        other.kill()
        other.wait()
        assert writer.seen(tmp_path)[0] == "gone"


def test_runs_of_one_name_have_addresses_of_their_own(tmp_path: Path) -> None:
    for place in ("a/run", "b/run"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.toml").write_text("")
    assert [s.name for s in Runs([tmp_path / "a/run", tmp_path / "b"]).sources] == ["run", "run-2"]


def test_markdown_cannot_be_broken_out_of(index: Index, tmp_path: Path) -> None:
    writer = Writer(tokenizer(), random.Random(0))
    writer.hear("user", "what?")
    writer.say("````\n# no heading\n`````\n<script>")
    record = json.loads(writer.close(Task("t", "", "41"), 0.0, answer="7").to_json())
    text = export.markdown({"step": 4, "advantage": -0.25, "id": 0, "sample": None, "value": None}, record)
    assert "- expected: 41" in text
    assert "- graded by correct: other numbers" in text
    assert "``````text\n````\n# no heading\n`````\n<script>\n``````" in text


def test_an_inspect_log_holds_the_sample(index: Index) -> None:
    row = index.page(["error"])["rows"][0]["id"]
    found = index.record(row)
    assert found is not None
    fields, record = found
    log = json.loads(export.inspect_log(fields, record, "tiny", "run"))
    (sample,) = log["samples"]
    assert sample["target"] == record["grading"]["expected"]
    assert sample["scores"]["reward"]["value"] == record["reward"]
    spoken = [m for m in sample["messages"] if m["role"] == "assistant"]
    assert [m["content"] for m in spoken] == [t["text"] for t in record["turns"] if t["role"] == "assistant"]
    asked = [call["id"] for m in spoken for call in m.get("tool_calls", [])]
    answered = [m for m in sample["messages"] if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in answered] == asked
    assert "error" in answered[0]


def test_what_was_counted_before_counts_on_as_the_file_grows(tmp_path: Path) -> None:
    """And from nothing when the file was written anew."""
    path = tmp_path / "trajectories.jsonl"
    lines = [json.dumps(record) + "\n" for record in training_records(90, problems=9)]
    right = [json.loads(line)["reward"] > 0.5 for line in lines]
    path.write_text("".join(lines[:40]))
    index = Index(path)
    for upto in (40, 75):
        path.write_text("".join(lines[:upto]))
        while index.refresh(13):
            assert index.counts()["right"] == index.page(["right"])["total"] <= sum(right[:upto])
        assert index.counts()["right"] == index.page(["right"])["total"] == sum(right[:upto])
    path.write_text("".join(lines[60:]))
    while index.refresh():
        pass
    assert index.counts()["right"] == index.page(["right"])["total"] == sum(right[60:])


def test_a_fall_is_written_with_the_minus_sign_of_print(tmp_path: Path) -> None:
    lines = [
        {"phase": "eval", "step": 0, "accuracy": 0.75, "accuracy_low": 0.7, "accuracy_high": 0.8},
        {"phase": "eval", "step": 20, "accuracy": 0.714, "accuracy_low": 0.7, "accuracy_high": 0.73},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = RunMetrics(tmp_path / "metrics.jsonl")
    rows = overview.before_and_after(metrics, tmp_path)
    assert "(−3.6 points, 95 % from −8.8 to +1.6" in first_page.verdict(rows, metrics)
    assert "−3.6 points (−8.8 – +1.6)" in first_page.before_and_after(rows)
    assert (number(-3.625), number(-1234), number(-123.46), percent(-0.036)) == ("−3.625", "−1,234", "−123.5", "−3.6 %")
    drawn = charts.lines([charts.Series("loss", [0, 1], [-2.0, -1.0])], x="step", y="loss")
    assert ">−1.5<" in drawn
    assert not re.search(r"[> ]-\d", re.sub(r"<[^>]*>", "<>", drawn))
