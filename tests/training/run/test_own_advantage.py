"""Whose tracker it is: an advantage given as an object brings its own; without one there are no values to tell of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_run import TINY

from solostream.agent.trajectory_file import read_lines
from solostream.training.advantages import GRPO, SPO, Advantage, Advantages, ValueTracker
from solostream.training.batch import Batch
from solostream.training.config import load
from solostream.training.learner.guards import NotFinite
from solostream.training.run.metric_logger import read
from solostream.training.run.trainer import Trainer

SHORT = ["run.steps=3", "cold_start.phases=[]", "eval.greedy=false", "algorithm.stages=[]"]


def run(folder: Path, advantage: Advantage | None, *more: str) -> tuple[list[dict], list[float | None]]:
    """The rows of its updates, and the values that its dispatches had, in order."""
    Trainer(load(TINY, [*SHORT, *more]), folder, advantage=advantage).run()
    rows = [row for row in read(folder / "metrics.jsonl") if row["phase"] == "rl"]
    played = [line.trajectory for line in read_lines(folder / "trajectories.jsonl") if line.trajectory]
    return rows, [t.dispatch.value for t in played]


@pytest.mark.parametrize("parts", [1, 2])
def test_an_own_advantage_with_a_tracker_is_told_how_far_the_policy_moved(tmp_path: Path, parts: int) -> None:
    """Whatever the configuration names: its tracker adds up the drift of each update, and forgets by it."""
    spo = SPO(ValueTracker(), scale="none")
    mode = ["rollout.mode=async", f"rollout.learn_in_parts={parts}"] if parts > 1 else []
    rows, values = run(tmp_path / "run", spo, "algorithm.advantage=none", "learner.lr=1e-2", *mode)
    versions, sums = spo.tracker.state_dict()["drift"]
    steps = [row["learner/drift"] for row in rows]
    assert versions == [1, 2, 3]
    assert sums == pytest.approx([sum(steps[: i + 1]) for i in range(3)])
    assert min(steps) > 0.004  # nats a token; at .0035 one step is forgotten as slowly as none, ρ = .96
    assert None not in values
    assert all("tracker/value" in row for row in rows)


@pytest.mark.parametrize(
    ("advantage", "named"), [(None, "reinforce_pp"), (GRPO(), "spo")], ids=["by name", "as an object"]
)
def test_what_keeps_no_tracker_tells_no_values(tmp_path: Path, advantage: Advantage | None, named: str) -> None:
    """No value in a dispatch, and no Brier score of ½ against rewards, which would be .25 whatever is learnt."""
    more = [f"algorithm.advantage={named}", "algorithm.group_size=2"]
    rows, values = run(tmp_path / "run", advantage, *more)
    assert set(values) == {None}
    told = {name for row in rows for name in row}
    assert not {name for name in told if name.startswith("tracker/")}
    assert "learner/drift" not in told


class BreaksAtTheThird(SPO):
    """Learns from each batch; the advantages of the third are no numbers."""

    def __call__(self, batch: Batch) -> Advantages:
        found = super().__call__(batch)
        if batch[0].dispatch.version < 2:
            self.second = json.loads(json.dumps(self.tracker.state_dict()["beliefs"]))
            return found
        return Advantages([np.full_like(values, np.nan) for values in found.values], found.metrics)


def test_of_advantages_that_are_not_finite_nothing_is_saved(tmp_path: Path) -> None:
    """The estimator has learnt from the batch, and the checkpoint to go on from has not."""
    spo = BreaksAtTheThird(ValueTracker())
    with pytest.raises(NotFinite, match="no step was taken"):
        run(tmp_path / "run", spo, "run.checkpoint_every=1")
    *_, newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    saved = json.loads((newest / "trainer.json").read_text())["reinforcement"]
    assert newest.name == "step-000002"
    assert saved["tracker"]["beliefs"] == spo.second != spo.tracker.state_dict()["beliefs"]
