"""Reinforcement learning runs for any decoder of transformers, in both modes; larger ones are sampled in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from solostream.agent.engines.hf.lean import SMALL, LeanForward
from solostream.cli.main import main
from solostream.envs.data.arithmetic import generate
from solostream.training.run.metric_logger import read
from solostream.training.run.model import build_tokenizer

TINY = Path(__file__).parent / "tiny.toml"
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {}),
    "qwen2": (Qwen2Config, {}),
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "qwen3 with experts": (Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "smollm3": (SmolLM3Config, {}),
    "olmo2": (Olmo2Config, {}),
    "granite": (GraniteConfig, {}),
    "gemma": (GemmaConfig, {}),
    "starcoder2": (Starcoder2Config, {"sliding_window": None}),
}
WINDOWED: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {  # for vLLM alone: the hf engine refuses them
    "gemma3": (Gemma3TextConfig, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}),
}


def write_model(folder: Path, name: str, **more: int) -> int:
    """A random model of the architecture `name` with a tokenizer of the problems; its number of parameters."""
    tokenizer = build_tokenizer((task.prompt for task in generate(40, kinds=["gcd"], levels=[1], seed=3)), 400)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    kind, special = (ARCHITECTURES | WINDOWED)[name]
    config = kind(**{**SHAPE, "vocab_size": 448, **ids, **special, **more})
    torch.manual_seed(11)
    model = Auto.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def train(folder: Path, mode: str, *more: str) -> list[dict[str, Any]]:
    """The rows that two updates wrote."""
    settings = [
        f"run.root={folder}", "run.steps=2", f"model.path={folder / 'model'}", "cold_start.phases=[]",
        f"rollout.mode={mode}", "rollout.batch=4", "data.train=4", "data.test=2", "eval.greedy=false", *more,
    ]  # fmt: skip
    assert main(["train", str(TINY), "--name", "run", *(part for s in settings for part in ("--set", s))]) == 0
    return [row for row in read(folder / "run" / "metrics.jsonl") if row["phase"] == "rl"]


def trained_on_its_own_tokens(rows: list[dict[str, Any]]) -> None:
    """What the sampler said of its own tokens is what the learner says of them."""
    assert [row["step"] for row in rows] == [1, 2]
    mismatches = [value for row in rows for key, value in row.items() if key.endswith("mismatch/on_policy_max")]
    assert mismatches
    assert max(mismatches) < 1e-3


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains(name: str, mode: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", name)
    trained_on_its_own_tokens(train(tmp_path, mode))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_model_that_is_too_large_to_be_copied_is_sampled_in_place_and_trains(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"hidden_size": 256, "vocab_size": 253_952, "tie_word_embeddings": True}
    assert write_model(tmp_path / "model", "qwen3", **wide) > SMALL
    in_place, call = set(), LeanForward.__call__

    def seen(self: LeanForward, *args: Any) -> torch.Tensor:
        in_place.add(self.in_place)
        return call(self, *args)

    monkeypatch.setattr(LeanForward, "__call__", seen)
    trained_on_its_own_tokens(train(tmp_path, mode, "learner.logits_chunk=32", "rollout.batch=2"))
    assert in_place == {True}
