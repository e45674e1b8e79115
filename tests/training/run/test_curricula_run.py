"""A run whose sampler has a memory, whose groups are chosen, with other forms of problems: resumed, it is the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
from test_run import arguments, fingerprint

from solostream.agent.trajectory_file import read_lines
from solostream.cli.main import main
from solostream.training.run.metric_logger import read

RUNS = {
    "groups": (
        "algorithm.advantage=passk", "algorithm.stages=[]", "algorithm.group_size=3", "algorithm.dynamic_sampling=2",
        "algorithm.sampler=hints", "sampler.hints.near=0.2", "sampler.hints.of=bands",
    ),
    "single stream": ("algorithm.stages=['tool_cost']", "algorithm.sampler=direct", "sampler.direct.share=0.5"),
}  # fmt: skip


def settings(name: str) -> list[str]:
    return [word for setting in RUNS[name] for word in ("--set", setting)]


@pytest.mark.parametrize("name", list(RUNS))
def test_made_longer_later_it_equals_one_that_was(name: str, tmp_path: Path) -> None:
    assert main(arguments(tmp_path, "whole", *settings(name), "--set", "run.steps=4")) == 0
    assert main(arguments(tmp_path, "longer", *settings(name), "--set", "run.steps=2")) == 0
    assert main(arguments(tmp_path, "longer", "--resume", "--set", "run.steps=4")) == 0
    mine, other = fingerprint(tmp_path / "longer"), fingerprint(tmp_path / "whole")
    mine["rows"] = [row for row in mine["rows"] if (row["phase"], row["step"]) != ("eval", 2)]
    assert mine == other

    rows = [row for row in read(tmp_path / "whole" / "metrics.jsonl") if row["phase"] == "rl"]
    played = [line.trajectory for line in read_lines(tmp_path / "whole" / "trajectories.jsonl") if line.trajectory]
    forms = {t.task_id.partition("~")[2] for t in played}
    newest = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))[-1]
    state = json.loads((newest / "trainer.json").read_text())["reinforcement"]
    counted = sum(tried for tried, *_ in state["sampler"]["history"]["tasks"].values())
    assert counted == len(played)  # what was left out, too
    if name == "groups":
        left_out = sum(row["filter/uninformative"] for row in rows)
        assert len(played) == 4 * 6 + left_out
        assert left_out > 0
        assert sum(row["filter/uninformative_tokens"] for row in rows) > left_out
        assert any(form.startswith("hint=") for form in forms)
    else:
        assert forms == {"", "direct"}
        assert all(t.n_calls == 0 for t in played if t.task_id.endswith("~direct"))
        assert all("tool_cost/mean" in row for row in rows)


def test_a_stage_is_given_the_sampler_of_the_run_and_the_pool_its_levels(tmp_path: Path) -> None:
    """Its own ε: each batch is weighed by 1/(√(v(1 − v)) + .3), v as it was drawn by."""
    more = ["algorithm.stages=['inclusion_weights']", "sampler.prioritized.epsilon=0.3", "run.steps=4"]
    more += ["algorithm.tracker.pooled=true", "data.levels=[1,3]"]
    assert main(arguments(tmp_path, "weighed", *(word for one in more for word in ("--set", one)))) == 0
    rows = [row for row in read(tmp_path / "weighed" / "metrics.jsonl") if row["phase"] == "rl"]
    played = [line.trajectory for line in read_lines(tmp_path / "weighed" / "trajectories.jsonl") if line.trajectory]
    batches = [[t.dispatch.value for t in played if t.dispatch.version == row["step"] - 1] for row in rows]
    inverse = [[1 / (math.sqrt(v * (1 - v)) + 0.3) for v in batch] for batch in batches]
    found = [row["inclusion/largest"] for row in rows]
    assert found == pytest.approx([max(batch) / fmean(batch) for batch in inverse])
    assert max(found) > 1.01

    (newest,) = sorted((tmp_path / "weighed" / "checkpoints").glob("step-*4"))
    tracker = json.loads((newest / "trainer.json").read_text())["reinforcement"]["tracker"]
    assert set(tracker["levels"].values()) == {"1", "3"}
    assert {name.partition(" (level ")[2] for name in tracker["pool"]} == {"", "1)", "3)"}
    assert not any("level" in source for source in tracker["sources"].values())
