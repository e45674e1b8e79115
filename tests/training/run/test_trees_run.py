"""Whole runs whose episodes branch: exact when resumed, never cut, and told to log, metrics and tracker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run import fingerprint

from solostream.agent.exploration.tree import gathered
from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.cli.main import main
from solostream.training.run.metric_logger import read

TINY = Path(__file__).parent / "tiny.toml"
TREES = {
    "env.id": '"three_turns:ThreeTurns"', "env.options": "{}", "data.kinds": "[]", "data.levels": "[]",
    "data.train": "6", "data.test": "2", "env.turn_tokens": "5", "cold_start.phases": "[]", "eval.greedy": "false",
    "rollout.strategy": '"arpo"', "rollout.arpo": "{initial = 1, alpha = 0.9}", "rollout.batch": "8",
    "algorithm.group_size": "4", "algorithm.stages": '["tree_values", "prefix_once"]', "algorithm.sampler": '"uniform"',
}  # fmt: skip


def train(root: Path, name: str, *more: str, **settings: str) -> int:
    given = {"run.root": str(root), **TREES, **{key.replace("__", "."): value for key, value in settings.items()}}
    return main(["train", str(TINY), "--name", name, *(f"--set={k}={v}" for k, v in given.items()), *more])


def leaves(folder: Path) -> list[Trajectory]:
    return [line.trajectory for line in read_lines(folder / "trajectories.jsonl") if line.trajectory]


def test_a_run_that_branches_and_is_made_longer_equals_one_that_was(tmp_path: Path) -> None:
    assert train(tmp_path, "whole", run__steps="3") == 0
    assert train(tmp_path, "longer", run__steps="2") == 0
    assert train(tmp_path, "longer", "--resume", run__steps="3") == 0
    mine, other = fingerprint(tmp_path / "longer"), fingerprint(tmp_path / "whole")
    mine["rows"] = [row for row in mine["rows"] if not (row["phase"] == "eval" and row["step"] == 2)]
    assert mine == other

    trees = gathered(leaves(tmp_path / "whole"))
    assert [len(tree.leaves) for tree in trees] == [4] * 6
    assert [leaf.dispatch.event for tree in trees for leaf in tree.leaves] == list(range(24))
    assert any(leaf.branch.forks for tree in trees for leaf in tree.leaves)
    for tree in trees:
        assert len({leaf.dispatch.group for leaf in tree.leaves}) == 1
        assert len({leaf.task_id for leaf in tree.leaves}) == 1
    rows = [row for row in read(tmp_path / "whole" / "metrics.jsonl") if row["phase"] == "rl"]
    assert all(row["tree/leaves"] == 4 and 0 < row["tree/shared"] < 0.5 for row in rows)

    # Every leaf has a share in one observation of its trunk, and no leaf is an observation of its own.
    newest = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))[-1]
    beliefs = json.loads((newest / "trainer.json").read_text())["reinforcement"]["tracker"]["beliefs"]
    seen = sorted(event for belief in beliefs.values() for event, *_ in belief["events"])
    trunks = sorted(
        leaf.dispatch.event for tree in trees for leaf in tree.leaves if leaf.branch.path == (leaf.branch.leaf,)
    )
    assert seen == trunks


def test_streams_of_trees_are_never_cut(tmp_path: Path) -> None:
    """Asynchronously, with a batch that is no whole number of trees' tokens, and stages that read trees."""
    assert train(tmp_path, "streams", rollout__mode="async", rollout__batch_tokens="60", run__steps="3") == 0
    records = [json.loads(line) for line in (tmp_path / "streams" / "trajectories.jsonl").read_text().splitlines()]
    updates = [{int(event) for event in record["advantages"]} for record in records if "update" in record]
    assert len(updates) == 3
    tree_of = {leaf.dispatch.event: leaf.branch.tree for leaf in leaves(tmp_path / "streams")}
    for events in updates:
        trees = {tree_of[event] for event in events}
        assert events == {event for event, tree in tree_of.items() if tree in trees}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rollout__strategy": '"episode"'}, "stage 'tree_values' reads trees"),
        ({"algorithm__advantage": '"rloo"'}, "'rloo' needs answers that are independent"),
        ({"algorithm__group_size": "1"}, "set algorithm.group_size to their leaves"),
        ({"rollout__arpo": "{initial = 4}"}, "set initial lower"),
        ({"rollout__mode": '"async"', "rollout__learn_in_parts": "2"}, "set rollout.learn_in_parts = 1"),
        ({"learner__aggregation": '"seq_mean_token_mean"'}, "set learner.aggregation = 'token_mean'"),
        ({"algorithm__stages": "[]", "rollout__strategy": '"ead"'}, "set learner.tis_cap"),
    ],
)
def test_what_does_not_combine_is_refused_in_a_line(
    settings: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "refused", **settings) == 2
    complaint = capsys.readouterr().err.strip()
    assert said in complaint
    assert len(complaint.splitlines()) == 1
    assert not (tmp_path / "refused").exists()
