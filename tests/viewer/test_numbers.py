"""The numbers of the viewer's pages against a full read; what is exported reads back."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from synthetic_runs import Writer, run_code, tokenizer, training_records, write_training_run

from solostream.agent.trajectory import Trajectory
from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.evaluation.tool_use import observe
from solostream.sandbox.types import CodeError
from solostream.viewer import aggregates, export, overview
from solostream.viewer.index import Index
from solostream.viewer.metric_columns import Metrics
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
    expected = {"steps": [0, 6], "sources": ["synthetic"], "endings": endings, "errors": sorted(names)}
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
    metrics = Metrics(path)
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
    found = overview.facts(run, Metrics(run / "metrics.jsonl"))
    shown = {k: found[k] for k in ("kind", "model", "data", "steps", "planned", "before", "after", "status", "tags")}
    assert shown == {
        "kind": "training", "model": "tiny", "data": "gsm8k", "steps": 6, "planned": 9, "before": 0.25, "after": 0.75,
        "status": "finished", "tags": ["first"],
    }  # fmt: skip
    assert overview.flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


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
