"""Whole runs whose history leaves the policy's sight: exact when resumed, on the sampler's numbers, and told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run import fingerprint

from solostream.agent.run_settings import run_settings
from solostream.agent.trajectory_file import read_lines
from solostream.cli.main import main
from solostream.training.run.metric_logger import read
from solostream.viewer.export import markdown
from solostream.viewer.index import Index

TINY = Path(__file__).parent / "tiny.toml"
WINDOW = {
    "env.id": '"three_turns:ThreeTurns"', "env.options": "{}", "data.kinds": "[]", "data.levels": "[]",
    "data.train": "6", "data.test": "2", "env.turn_tokens": "5", "cold_start.phases": "[]", "eval.greedy": "false",
    "rollout.strategy": '"window"', "rollout.window": "{turns = 1}", "algorithm.sampler": '"uniform"',
    "learner.max_tokens_per_batch": "40",
}  # fmt: skip


def train(root: Path, name: str, *more: str, **settings: str) -> int:
    given = {"run.root": str(root), **WINDOW, **{key.replace("__", "."): value for key, value in settings.items()}}
    return main(["train", str(TINY), "--name", name, *(f"--set={k}={v}" for k, v in given.items()), *more])


def test_a_segmented_run_that_is_made_longer_equals_one_that_was(tmp_path: Path) -> None:
    rescore = {"algorithm__spo__divergence": '"rescore"'}  # scores what was folded again, after the resume too
    assert train(tmp_path, "whole", run__steps="3", **rescore) == 0
    assert train(tmp_path, "longer", run__steps="2", **rescore) == 0
    assert train(tmp_path, "longer", "--resume", run__steps="3") == 0
    mine, other = fingerprint(tmp_path / "longer"), fingerprint(tmp_path / "whole")
    mine["rows"] = [row for row in mine["rows"] if not (row["phase"] == "eval" and row["step"] == 2)]
    assert mine == other
    # Seen first, or by a policy that has gone on since.
    told = [event for belief in mine["tracker"]["beliefs"].values() for event in belief["events"]]
    assert all((divergence > 0) == (version > 0) for _, _, divergence, version in told)

    # Three turns, of which each sees the opening and the answer to the one before: two segments a trajectory.
    path = tmp_path / "whole" / "trajectories.jsonl"
    played = [line.trajectory for line in read_lines(path) if line.trajectory]
    assert {len(one.segments) for one in played} == {2}
    assert {turn.kept for one in played for turn in one.turns if turn.role == "context"} == {(0, 3)}
    rows = [row for row in read(tmp_path / "whole" / "metrics.jsonl") if row["phase"] == "rl"]
    assert all(row["length/segments"] == 2.0 for row in rows)
    assert all(row["mismatch/on_policy_max"] < 1e-4 for row in rows)

    # What the run saved is played so by an evaluation, too; the viewer says where history was replaced.
    newest = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))[-1]
    settings = run_settings(str(newest))
    assert settings is not None
    assert (settings.rollout, settings.rollout_options["turns"]) == ("window", 1)
    index = Index(path)
    index.refresh()
    row = index.page(limit=1)["rows"][0]
    fields, record = index.record(row["id"])
    assert row["response_length"] == played[0].response_length
    text = markdown(fields, record)
    assert "## History replaced" in text
    assert "From here on the policy sees the opening and 1 of its 2 turns." in text
    assert json.loads(json.dumps(record))["turns"][4]["kept"] == [0, 3]


def test_a_window_that_makes_no_sense_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "refused", rollout__window="{turn = 1}") == 2
    assert "rollout 'window' has no option 'turn'; did you mean 'turns'?" in capsys.readouterr().err
