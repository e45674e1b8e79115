"""A model that cannot be had, or has no chat template, and a device that lacks something: one line with the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from test_architectures import write_model
from transformers import AutoTokenizer

from solostream.errors import UserError
from solostream.training.config import ModelConfig, validate
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner import optimizer
from solostream.training.learner.device import base_dtype, compute_dtype, sampler_dtype
from solostream.training.learner.guards import device_told, memory_advice
from solostream.training.learner.learner import Learner
from solostream.training.run import model
from solostream.training.run.model import load_model
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.train import newest, run

TINY = Path(__file__).parent / "tiny.toml"


def test_a_missing_model_is_one_line() -> None:
    with pytest.raises(UserError, match=r'model.path = "nobody/nothing": no such folder') as error:
        load_model(ModelConfig(path="nobody/nothing"))
    assert "\n" not in str(error.value)


def test_a_base_model_without_a_chat_template_is_offered_one(tmp_path: Path) -> None:
    write_model(tmp_path, "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r'no chat template: set model.chat_template = "chatml"'):
        load_model(ModelConfig(path=str(tmp_path)))
    assert load_model(ModelConfig(path=str(tmp_path), chat_template="chatml"))[1].chat_template is None


def exhausted(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 23.99 GiB")


@pytest.mark.parametrize(
    ("place", "method", "said"),
    [
        (model, "build_model", r"out of memory \(CUDA out of memory\): --dry-run lists .* go on with --resume"),
        (optimizer.Optimizer, "__init__", r"out of memory \(CUDA out of memory\): --dry-run lists"),
        (optimizer.Optimizer, "apply", r"resume with cold_start.learner.max_tokens_per_batch = 4096, or cold_start"),
    ],
)
def test_out_of_memory_anywhere_is_one_line(
    place: Any, method: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validate(tomllib.loads(TINY.read_text()))
    monkeypatch.setattr(place, method, exhausted)
    with pytest.raises(UserError, match=said) as error:
        run(config, tmp_path / "run", None, ProgressDisplay())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
)
def test_a_gpu_that_fails_in_the_middle_leaves_a_run_to_go_on_with(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: the learner's update says what torch says when a device is gone."""
    config = validate(tomllib.loads(TINY.read_text()) | {"cold_start": {"phases": []}})
    whole, calls = Learner.update, iter(range(9))

    def update(self: Learner, *args: Any, **kwargs: Any) -> dict[str, float]:
        if next(calls) == 3:
            raise error
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(UserError, match=r"the GPU failed \(CUDA error: .*go on with --resume") as told:
        run(config, tmp_path / "run", None, ProgressDisplay())
    monkeypatch.setattr(Learner, "update", whole)
    assert "\n" not in str(told.value)
    kept = newest(tmp_path / "run")
    assert kept is not None
    assert kept.name.endswith("2")
    run(config, tmp_path / "run", kept, ProgressDisplay())
    assert newest(tmp_path / "run").name.endswith("6")


def test_what_a_program_does_wrong_is_not_blamed_on_the_gpu() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), device_told():
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_remedy_that_is_taken_is_not_advised_again() -> None:
    config = LearnerConfig(gradient_checkpointing=True, max_tokens_per_batch=1000, logits_chunk=512)
    said = r"max_tokens_per_batch = 500, or learner.logits_chunk = 128$"
    with pytest.raises(UserError, match=said), memory_advice(config):
        exhausted()


def test_bfloat16_on_a_gpu_without_it_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    gpu = torch.device("cuda", 0)
    half = ModelConfig(dtype="bfloat16", sampler_dtype="bfloat16")
    with pytest.raises(UserError, match=r'Old Card has no bfloat16: set model.dtype = "float32"'):
        base_dtype(half, gpu)
    with pytest.raises(UserError, match=r'set model.sampler_dtype = "float32"'):
        sampler_dtype(half, gpu)
    with pytest.raises(UserError, match=r'set learner.dtype = "float32"'):
        compute_dtype("bfloat16", gpu)
    assert compute_dtype("auto", gpu) == sampler_dtype(ModelConfig(), gpu) == torch.float32
    assert base_dtype(half, torch.device("cpu")) == torch.bfloat16
