"""What the plan counts of a model, against the model: what peft adapts, what each optimizer keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from solostream.errors import UserError
from solostream.training.config import validate
from solostream.training.config.learner import LearnerConfig, LoraConfig
from solostream.training.config.memory import optimizer_bytes
from solostream.training.config.memory.shape import shape_of
from solostream.training.learner.learner import Learner
from solostream.training.learner.supervised import sft_step

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 640,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
MODELS: dict[str, Any] = {
    "qwen3": Qwen3Config(**GROUPED, tie_word_embeddings=True),
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "gpt2": GPT2Config(n_embd=48, n_layer=3, n_head=6, vocab_size=640),  # its linear layers are of another class
}


def of(kind: str, folder: Path) -> tuple[Any, Any]:
    """(shape as planned, the model)."""
    MODELS[kind].save_pretrained(folder)
    torch.manual_seed(0)
    return shape_of(validate({"model": {"path": str(folder)}})), AutoModelForCausalLM.from_config(MODELS[kind])


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("qwen3", "all-linear"),
        ("qwen3", r".*\.q_proj"),
        ("qwen3", r"model\.layers\.[02]\..*_proj"),
        ("qwen3", ("q_proj", "mlp.down_proj")),
        ("qwen3", ("layers.1.self_attn.k_proj", "no_such_layer")),
        ("llama", ("o_proj", "lm_head")),
        ("llama", ("embed_tokens", "v_proj")),
        ("gpt2", "all-linear"),
        ("gpt2", ("c_attn",)),
    ],
)
def test_adapters_are_counted_where_peft_puts_them(kind: str, targets: Any, tmp_path: Path) -> None:
    shape, model = of(kind, tmp_path)
    config = LearnerConfig(lora=LoraConfig(rank=5, targets=targets))
    trained = sum(p.numel() for p in Learner(model, config).model.parameters() if p.requires_grad)
    assert shape.adapters(config) == trained


@pytest.mark.parametrize("targets", ["q_proj", ("q_projj",), ".*q_projj", (), "all_linear"])
def test_targets_that_fit_nothing_are_refused_with_what_there_is(targets: Any, tmp_path: Path) -> None:
    config = LearnerConfig(lora=LoraConfig(targets=targets))
    built = shape_of(validate({"model": {"build": {"layers": 2}}}))
    for shape in (built, of("qwen3", tmp_path)[0]):
        with pytest.raises(
            UserError, match=r"fits no layer .* \"all-linear\", to a list of .*q_proj, k_proj, .*down_proj"
        ):
            shape.adapters(config)


def test_a_pattern_that_is_none_is_one_line(tmp_path: Path) -> None:
    config = LearnerConfig(lora=LoraConfig(targets="(q_proj"))
    shape, model = of("qwen3", tmp_path)
    with pytest.raises(UserError, match=r'targets = "\(q_proj" is no regular expression \(missing \)'):
        shape.adapters(config)
    with pytest.raises(UserError, match="does not fit this model: missing"):
        Learner(model, config)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=5)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_what_the_optimizer_keeps(kind: str, name: Any, lora: Any, tmp_path: Path) -> None:
    """Muon has one momentum of a matrix where AdamW has two moments; embeddings, head and norms stay with AdamW."""
    shape, model = of(kind, tmp_path)
    config = LearnerConfig(optimizer=name, lora=lora)
    learner = Learner(model, config)
    sft_step(learner, [(np.arange(9), np.arange(9) > 2)])
    states = [state for part, _ in learner.optimizer.parts for state in part.state.values()]
    kept = sum(x.nbytes for state in states for x in state.values() if isinstance(x, torch.Tensor) and x.ndim)
    assert optimizer_bytes(config, shape) == kept
