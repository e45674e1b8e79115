"""A path that is no model is told what it is and which one to give, in the plan, in a run and in an evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_architectures import write_model

from solostream.agent.engines.pretrained import load_tokenizer
from solostream.cli.main import main
from solostream.errors import UserError
from solostream.training.config import ModelConfig, validate
from solostream.training.config.memory.shape import shape_of
from solostream.training.run.model import load_model


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "run" / "checkpoints" / "step-000020", "qwen3")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("", "it is a run, not a model: give one of its checkpoints, such as {run}/checkpoints/step-000020"),
        (
            "checkpoints/step-000020/model.safetensors",
            "it is a file, and a model is a folder with a config.json: give that, such as "
            "{run}/checkpoints/step-000020",
        ),
    ],
)
def test_a_run_and_a_file_of_a_model_are_named(inside: str, said: str, run_folder: Path) -> None:
    path = str(run_folder / inside)
    told = re.escape(said.format(run=run_folder))
    with pytest.raises(UserError, match=rf'^model\.path = "{re.escape(path)}": {told}$'):
        shape_of(validate({"model": {"path": path}}))
    with pytest.raises(UserError, match=rf'^model\.path = "{re.escape(path)}": {told}$'):
        load_model(ModelConfig(path=path))
    with pytest.raises(UserError, match=rf"^cannot load '{re.escape(path)}': {told}; an engine is "):
        load_tokenizer(path)


@pytest.mark.parametrize("command", ["eval", "distill", "chat"])
def test_a_template_that_is_missing_is_told_before_the_weights_are_read(
    command: str, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which nobody could read: whoever tries says so."""
    monkeypatch.chdir(run_folder)
    (run_folder / "p.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    model = run_folder / "checkpoints" / "step-000020"
    (model / "chat_template.jinja").unlink()
    (model / "model.safetensors").write_bytes(b"")
    assert main([command, str(model), *([] if command == "chat" else ["--data", "p.jsonl"])]) == 2
    assert "has no chat template: give one (" in capsys.readouterr().err
