"""Reinforcement learning runs for any decoder of transformers, in both modes, past the size of the lean one too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
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

from solostream.agent.engines.hf.lean import SMALL
from solostream.agent.trajectory_file import read_lines
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


def write_model(folder: Path, name: str, **more: int) -> int:
    """A random model of the architecture `name` with a tokenizer of the problems; its number of parameters."""
    tokenizer = build_tokenizer((task.prompt for task in generate(40, kinds=["gcd"], levels=[1], seed=3)), 400)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    kind, special = ARCHITECTURES[name]
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


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains(name: str, mode: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", name)
    rows = train(tmp_path, mode)
    assert [row["step"] for row in rows] == [1, 2]
    # What the sampler said of its own tokens is what the learner says of them.
    mismatches = [value for row in rows for key, value in row.items() if key.endswith("mismatch/on_policy_max")]
    assert mismatches
    assert max(mismatches) < 1e-3


def test_a_model_past_the_lean_decoder_trains(tmp_path: Path) -> None:
    assert (
        write_model(tmp_path / "model", "qwen3", hidden_size=256, vocab_size=253_952, tie_word_embeddings=True) > SMALL
    )
    rows = train(tmp_path, "async", "learner.logits_chunk=32", "rollout.batch=2")
    trajectories = [line.trajectory for line in read_lines(tmp_path / "run" / "trajectories.jsonl") if line.trajectory]
    assert len(rows) == 2
    assert all(t.logprobs[t.action_mask].max() < 0 for t in trajectories)
