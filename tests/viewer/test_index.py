"""The index says what a full read says, follows a growing file, and survives cut, rewritten and damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import Writer, tokenizer, training_records, update, write_training_run

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.evaluation.tool_use import observe
from solostream.viewer.index import Index
from solostream.viewer.tokens import Pieces, find_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return list(training_records(300, problems=40))


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def built(path: Path) -> Index:
    index = Index(path)
    while index.refresh(64):
        pass
    return index


NAIVE = {
    "right": lambda t: t.reward > 0.5,
    "wrong": lambda t: t.reward <= 0.5,
    "tool": lambda t: t.first_call_token is not None,
    "no_tool": lambda t: t.first_call_token is None,
    "error": lambda t: bool(observe(t).errors),
    "void": lambda t: t.void,
    "late": lambda t: observe(t).late_calls > 0,
    "trivial": lambda t: observe(t).trivial,
    "unfinished": lambda t: t.ending != "answered",
}


def test_every_filter_equals_a_full_read(tmp_path: Path, records: list[dict]) -> None:
    index = built(write(tmp_path / "trajectories.jsonl", records))
    trajectories = [Trajectory.from_dict(r) for r in records]
    counts = index.counts()
    assert set(counts) == set(NAIVE)
    for name, naive in NAIVE.items():
        expected = [i for i, t in enumerate(trajectories) if naive(t)]
        page = index.page([name], limit=1000)
        assert [row["id"] for row in page["rows"]] == expected, name
        assert page["total"] == counts[name] == len(expected)
        assert expected, f"the fixture has no {name} trajectory"
    both = index.page(["wrong", "error"], limit=1000)
    assert [r["id"] for r in both["rows"]] == [
        i for i, t in enumerate(trajectories) if NAIVE["wrong"](t) and NAIVE["error"](t)
    ]


def test_pages_sorts_and_searches(tmp_path: Path, records: list[dict]) -> None:
    index = built(write(tmp_path / "trajectories.jsonl", records))
    lengths = [row["response_length"] for row in index.page(sort="response_length", descending=True, limit=300)["rows"]]
    assert lengths == sorted(lengths, reverse=True)
    window = index.page(sort="response_length", descending=True, offset=40, limit=10)["rows"]
    assert [row["response_length"] for row in window] == lengths[40:50]
    firsts = [row["first_call"] for row in index.page(sort="first_call", limit=300)["rows"]]
    assert None in firsts
    assert None not in firsts[: firsts.index(None)]
    assert firsts[firsts.index(None) :] == [None] * firsts.count(None)
    task = records[0]["task_id"]
    assert {row["task_id"] for row in index.page(query=task)["rows"]} == {task}
    assert index.page(query="NameError")["total"] == sum("NameError" in json.dumps(r["turns"]) for r in records)
    assert index.page(query="100%_'; DROP")["total"] == 0
    assert len(index.task(task)) == sum(r["task_id"] == task for r in records)
    with pytest.raises(UserError, match="unknown filter 'wrongs'"):
        index.page(["wrongs"])
    with pytest.raises(UserError, match="unknown sort"):
        index.page(sort="id; DROP TABLE rows")


def test_bodies_are_the_lines(tmp_path: Path, records: list[dict]) -> None:
    index = built(write(tmp_path / "trajectories.jsonl", records))
    found = index.record(17)
    assert found is not None
    assert found[1] == records[17]
    assert index.record(300) is None


def test_an_update_gives_the_rows_before_it_their_advantages(tmp_path: Path, records: list[dict]) -> None:
    path = write(tmp_path / "trajectories.jsonl", [*records[:3], update(records[:2]), records[3]])
    index = built(path)
    given = update(records[:2])["advantages"]
    rows = index.page()["rows"]
    assert [row["advantage"] for row in rows] == [given[0], given[1], None, None]
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert index.status()["damaged"] == 0
    with path.open("a") as file:
        file.write(json.dumps({"update": 2, "advantages": {"0": -1.5, "3": 0.25}}) + "\n")  # again after a resume
    assert index.refresh() == 1
    assert [row["advantage"] for row in index.page()["rows"]] == [-1.5, given[1], None, 0.25]
    assert index.record(3)[1] == records[3]


def test_an_update_may_weigh_turns_differently(tmp_path: Path, records: list[dict]) -> None:
    """The list sorts by the mean over the turns; the body has them one by one."""
    given = {"update": 1, "advantages": {"0": [0.5, None, -1.0], "1": 2.0}}
    index = built(write(tmp_path / "trajectories.jsonl", [*records[:3], given]))
    rows = index.page(sort="advantage", descending=True)["rows"]
    assert [(row["id"], row["advantage"]) for row in rows] == [(1, 2.0), (0, -0.25), (2, None)]
    found = [index.record(i) for i in range(3)]
    assert [row["advantages"] for row, _ in found] == [[0.5, None, -1.0], None, None]


def test_follows_a_growing_file_and_waits_for_half_a_line(tmp_path: Path, records: list[dict]) -> None:
    path = write(tmp_path / "trajectories.jsonl", records[:10])
    index = built(path)
    text = json.dumps(records[10]) + "\n"
    with path.open("a") as file:
        file.write(text[:100])
        file.flush()
        assert index.refresh() == 0
        file.write(text[100:])
        file.flush()
        assert index.refresh() == 1
    assert index.status()["rows"] == 11
    assert built(path).status()["rows"] == 11  # a second look reads nothing anew
    assert index.record(10)[1] == records[10]


def test_a_cut_or_rewritten_file_is_indexed_anew(tmp_path: Path, records: list[dict]) -> None:
    path = write(tmp_path / "trajectories.jsonl", records[:50])
    index = built(path)
    os.truncate(path, path.stat().st_size // 2)
    index.refresh()
    assert index.status()["rows"] < 50
    write(path, records[100:200])  # larger than before, and different
    while index.refresh():
        pass
    assert index.status()["rows"] == 100
    assert index.record(0)[1] == records[100]


def test_several_at_once_index_every_line_once(tmp_path: Path, records: list[dict]) -> None:
    path = write(tmp_path / "trajectories.jsonl", records)
    follow = f"i = Index(Path({str(path)!r}))\nwhile i.refresh(7): pass"
    code = f"from pathlib import Path\nfrom solostream.viewer.index import Index\n{follow}"
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    index = Index(path)
    assert index.refresh() == 0
    assert [row["id"] for row in index.page(limit=500)["rows"]] == list(range(len(records)))


def test_a_deleted_index_is_made_again(tmp_path: Path, records: list[dict]) -> None:
    index = built(write(tmp_path / "trajectories.jsonl", records[:20]))
    for path in tmp_path.glob(".trajectories.jsonl.index*"):
        path.unlink()
    assert index.refresh() == 20
    assert index.status()["rows"] == 20


def test_damage_is_listed_and_skipped(tmp_path: Path, records: list[dict]) -> None:
    path = tmp_path / "trajectories.jsonl"
    path.write_text(
        json.dumps(records[0]) + "\n{broken\n" + json.dumps({"task_id": "x"}) + "\n" + json.dumps(records[1]) + "\n"
    )
    status = built(path).status()
    assert status["rows"] == 2
    assert [number for number, _ in status["damage"]] == [2, 3]
    assert "is missing" in status["damage"][1][1]


def test_pieces_join_to_the_text(tmp_path: Path) -> None:
    folder = write_training_run(tmp_path / "run", 8)
    pieces = Pieces(find_tokenizer(folder))
    text = "So 🙂 naïvely 42 – done.\n"
    ids = tokenizer().encode(text).ids
    assert len(ids) > len(text.split())
    assert "".join(pieces(ids)) == text
    assert pieces([10**6]) == ["⟨1000000⟩"]
    assert pieces([0]) == ["<eos>"]


def test_a_run_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert find_tokenizer(tmp_path) is None


def test_index_of_a_script_in_the_prompt(tmp_path: Path) -> None:
    import random

    from solostream.envs.types import Task

    writer = Writer(tokenizer(), random.Random(0))
    writer.hear("user", "<script>alert(1)</script>\n  what?")
    writer.say("\\boxed{1}")
    one = writer.close(Task("t", "", "1"), 0.0)
    index = built(write(tmp_path / "samples.jsonl", [one.to_dict()]))
    assert index.page()["rows"][0]["prompt"] == "<script>alert(1)</script> what?"
