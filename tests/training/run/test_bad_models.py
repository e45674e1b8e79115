"""A model that cannot be had, or has no chat template, and a device that lacks something: one line with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_architectures import write_model
from transformers import AutoTokenizer

from solostream.errors import UserError
from solostream.training.config import ModelConfig
from solostream.training.learner.device import base_dtype, compute_dtype, sampler_dtype
from solostream.training.run.model import load_model


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
