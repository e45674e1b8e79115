"""An asynchronous run killed long after its last checkpoint: what its log holds is used once, as what it is."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.cli.main import main
from solostream.training.run.metric_logger import read

TINY = Path(__file__).parent / "tiny.toml"


def train(root: Path, steps: int, *more: str) -> Path:
    settings = (f"run.root={root}", f"run.steps={steps}", "rollout.mode=async", "eval.greedy=false", *more)
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", str(TINY), "--name", "late", *words, "--resume", "auto"]) == 0
    return root / "late"


def killed_after(folder: Path, step: int) -> None:
    """As a kill leaves it: the log goes on, no checkpoint after `step` was ever written."""
    for place in (folder / "checkpoints").glob("step-*"):
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)
    (folder / "summary.json").unlink(missing_ok=True)


def played(folder: Path) -> list[Trajectory]:
    return [line.trajectory for line in read_lines(folder / "trajectories.jsonl") if line.trajectory]


def test_before_the_first_checkpoint_of_reinforcement_it_goes_on_too(tmp_path: Path) -> None:
    """Only the cold start's is there, and no version before it that a lost policy's tokens could go under."""
    folder = train(tmp_path, 4, "run.checkpoint_every=100")
    killed_after(folder, 0)
    assert max(int(t.versions.max()) for t in played(folder)) > 0
    train(tmp_path, 5, "run.checkpoint_every=100")
    steps = [row["step"] for row in read(folder / "metrics.jsonl") if row["phase"] == "rl"]
    assert steps == [1, 2, 3, 4, 5]
    events = Counter(t.dispatch.event for t in played(folder))
    assert max(events.values()) == 1


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_groups_that_are_drawn_after_it_are_no_groups_of_the_log(advantage: str, tmp_path: Path) -> None:
    grouped = ("algorithm.group_size=2", f"algorithm.advantage={advantage}", "rollout.over_provision=2", "run.keep=9")
    folder = train(tmp_path, 8, "run.checkpoint_every=3", *grouped)
    killed_after(folder, 3)
    before = max(t.dispatch.group or 0 for t in played(folder))
    train(tmp_path, 12, "run.checkpoint_every=3", *grouped)
    groups: dict[int | None, list[str]] = defaultdict(list)
    for trajectory in played(folder):
        groups[trajectory.dispatch.group].append(trajectory.task_id)
    assert max(group or 0 for group in groups) > before + 3
    assert all(len(set(tasks)) == 1 and len(tasks) <= 2 for tasks in groups.values())
