"""What a run goes on from: an older checkpoint, another folder, a longer schedule, and what must not have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from solostream.cli.main import main
from solostream.errors import UserError
from solostream.training.config import Config, load
from solostream.training.run.checkpoint import State, refuse_another_run
from solostream.training.run.metric_logger import read
from solostream.training.run.trainer import Trainer

TINY = Path(__file__).parent / "tiny.toml"
SHORT = ("cold_start.phases=[]", "algorithm.tracker.start_samples=0", "eval.greedy=false", "data.test=2", "run.keep=9")


def train(root: Path, name: str, *settings: str, resume: Path | str | None = None) -> int:
    words = [word for setting in (f"run.root={root}", *settings) for word in ("--set", setting)]
    return main(["train", str(TINY), "--name", name, *words, *(["--resume", str(resume)] if resume else [])])


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in (folder / "checkpoints").iterdir())


def test_going_back_to_an_older_checkpoint_of_the_folder_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "back", *SHORT, "run.steps=6") == 0
    folder = tmp_path / "back"
    capsys.readouterr()
    assert train(tmp_path, "back", "run.steps=3", "run.keep=1", resume=folder / "checkpoints/step-000002") == 0
    abandoned = ["abandoned-step-000004", "abandoned-step-000006"]
    assert names(folder) == [*abandoned, "step-000003"]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("step-000004, step-000006 in ") == 1
    assert "are renamed abandoned-*, for this run goes on from" in said
    assert [row["step"] for row in read(folder / "metrics.jsonl") if row["phase"] == "rl"] == [1, 2, 3]

    assert train(tmp_path, "back", "run.steps=4", resume="auto") == 0  # goes on from the third step
    assert [row["step"] for row in read(folder / "metrics.jsonl") if row["phase"] == "rl"] == [1, 2, 3, 4]
    assert names(folder) == [*abandoned, "step-000004"]  # run.keep is still 1
    assert "abandoned" not in capsys.readouterr().out

    # what was abandoned is whole, and does not replace what was abandoned before
    assert train(tmp_path, "back", "run.steps=6", resume=folder / "checkpoints" / abandoned[0]) == 0
    assert names(folder) == ["abandoned-step-000004", "abandoned-step-000004-2", "abandoned-step-000006", "step-000006"]


def rates(folder: Path) -> list[float]:
    """After each step, that of the coming one."""
    return [row["learner/lr"] for row in read(folder / "metrics.jsonl") if row["phase"] == "rl"]


def test_a_schedule_that_ends_before_a_longer_run_is_told_and_can_be_made_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "linear", *SHORT, "learner.schedule=linear", "run.steps=4") == 0
    assert rates(tmp_path / "linear") == pytest.approx([7.5e-4, 5e-4, 2.5e-4, 0.0])
    capsys.readouterr()
    assert train(tmp_path, "linear", "run.steps=5", resume="auto") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("learner.total_steps = 4 ends the linear schedule before the last of 5 optimizer steps") == 1
    assert rates(tmp_path / "linear")[4:] == [0.0]

    longer = ("run.steps=6", "learner.total_steps=8")
    assert train(tmp_path, "linear", *longer, resume=tmp_path / "linear/checkpoints/step-000004") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ends the linear schedule" not in said
    assert said.count("learner.total_steps was 4 and is 8: the rate goes on along the linear schedule") == 1
    assert rates(tmp_path / "linear")[4:] == pytest.approx([3.75e-4, 2.5e-4])


def test_a_setting_that_is_there_no_more_is_named_as_a_changed_one_is() -> None:
    config = Config()
    then = {**config.resume_fingerprint(), "config_of_old": {"x": 1}}
    then["data"] = {**then["data"], "own:make": {"n": 3}}
    then["learner"] = {**then["learner"], "total_steps": 7}  # as a run that is made longer has it
    with pytest.raises(UserError, match=r"another data.own:make, config_of_old.x: set them back"):
        refuse_another_run(config, State(1, {"resume_fingerprint": then}, {}))


def test_a_chat_template_that_was_edited_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is another prompt; also where it was edited while the run went on, before the checkpoint was written."""
    source = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    file = tmp_path / "own.jinja"
    file.write_text(source)
    settings = (*SHORT, f"run.root={tmp_path}", f"model.chat_template={file}", "run.steps=1")
    trainer = Trainer(load(TINY, settings), tmp_path / "own")
    file.write_text(f"Now differently. {source}")
    trainer.run()
    assert train(tmp_path, "own", "run.steps=2", resume="auto") == 2
    (line,) = (s for s in capsys.readouterr().err.splitlines() if s.startswith("solostream:"))
    assert f"the chat template {file} has changed since the checkpoint: put it back" in line
    file.write_text(source)
    assert train(tmp_path, "own", "run.steps=2", resume="auto") == 0


def test_before_and_after_that_are_measured_differently_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ("eval.temperature=0.5", "eval.samples=2")

    def told(*settings: str) -> list[str]:
        capsys.readouterr()
        assert train(tmp_path, "own", *settings, resume="auto") == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("eval.")]

    assert told(*SHORT, "run.steps=1") == []
    lines = told("run.steps=2", *other)
    assert lines[0].startswith('eval.temperature was 1.0 when "before" was measured and is 0.5')
    assert lines[1].startswith('eval.samples was 1 when "before" was measured and is 2')
    assert lines[2:] == lines[:2]  # at the start, and under the table
    assert told("run.steps=3", "eval.every=2") == lines  # a checkpoint later it is still that "before"
    assert told("run.steps=4", "eval.temperature=1.0", "eval.samples=1") == []
