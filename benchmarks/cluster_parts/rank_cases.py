"""What `equality` lets one process and several ranks do: each a learner, two updates, and the numbers afterwards."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.cluster.rank_group import ALONE, RankGroup
from solostream.training.cluster.rank_sharding import whole_tensors
from solostream.training.config.learner import LearnerConfig, LoraConfig
from solostream.training.learner.guards import NotFinite
from solostream.training.learner.learner import Learner
from solostream.training.learner.supervised import sft_loss, sft_step

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
BASE = {"lr": 1e-4, "muon_lr": 1e-3, "max_tokens_per_batch": 96, "logits_chunk": 16, "weight_decay": 0.01}


@dataclass(frozen=True)
class Case:
    """sequences: of a batch. sft: supervised steps. blow_up: advantages whose gradient is infinite."""

    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen3"
    sequences: int = 13
    sft: bool = False
    blow_up: bool = False


CASES = {
    "the defaults": Case(),
    "another architecture, its head not tied": Case(model="llama"),
    **{f"loss {name}": Case({"loss": name}) for name in ("cispo", "clip_cov", "dppo", "gspo")},
    "loss kl_cov, two mini-batches": Case({"loss": "kl_cov", "num_mini_batches": 2}),
    **{f"aggregation {name}": Case({"aggregation": name}) for name in ("seq_mean_token_mean", "seq_mean_token_sum")},
    "two mini-batches, two epochs": Case({"num_mini_batches": 2, "epochs": 2}),
    "truncated importance sampling": Case({"tis_cap": 1.05}),
    "the same, two mini-batches, two epochs": Case({"tis_cap": 1.05, "num_mini_batches": 2, "epochs": 2}),
    "two-sided mask, rejected trajectories": Case({"mask_outside": (0.9, 1.1), "reject_outside": (0.96, 1.04)}),
    "improbable negatives left alone": Case({"drop_negatives_beyond": 0.01}),
    "entropy bonus, no limit of the norm": Case({"entropy_coef": 0.01, "grad_clip": 0.0}),
    "KL reference": Case({"kl_coef": 0.1, "num_mini_batches": 2}),
    "adapters": Case({"lora": LoraConfig(rank=4, alpha=8), "lr": 1e-3}),
    "adapters and KL reference": Case({"lora": LoraConfig(rank=4, alpha=8), "kl_coef": 0.1, "lr": 1e-3}),
    "adapters on a bfloat16 base": Case({"lora": LoraConfig(rank=4, alpha=8), "lr": 1e-3}, model="qwen3, bfloat16"),
    "Muon": Case({"optimizer": "muon"}),
    "Muon on adapters": Case({"optimizer": "muon", "lora": LoraConfig(rank=4, alpha=8)}),
    "gradient checkpointing": Case({"gradient_checkpointing": True}),
    "two sequences: ranks without any": Case(sequences=2),
    "one sequence, KL reference": Case({"kl_coef": 0.1, "gradient_checkpointing": True}, sequences=1),
    "every trajectory filtered out": Case({"drop_overlong": True}, sequences=3),
    "supervised steps": Case({"optimizer": "muon"}, sft=True),
    "a gradient that is not finite": Case(blow_up=True),
}


# Those in which a number of ranks above two meets something new; the others are left out where time is short.
WIDE = (
    "the defaults",
    "two mini-batches, two epochs",
    "adapters and KL reference",
    "Muon",
    "two sequences: ranks without any",
    "one sequence, KL reference",
    "every trajectory filtered out",
    "a gradient that is not finite",
)


def model_of(name: str) -> Any:
    """Random, far from uniform, the same in every process."""
    torch.manual_seed(0)
    if name == "llama":
        made: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    else:
        made = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return made.to(torch.bfloat16) if "bfloat16" in name else made


def learner_of(case: Case, group: RankGroup = ALONE) -> Learner:
    made = model_of(case.model)
    torch.manual_seed(5)  # of adapters
    return Learner(made, LearnerConfig(**{**BASE, **case.settings}), temperature=0.9, seed=3, group=group)


def batch_of(case: Case, step: int) -> tuple[Batch, Advantages]:
    return _batch(case.model, case.sequences, bool(case.settings.get("drop_overlong")), case.blow_up, step)


@functools.cache
def _scorer(model: str) -> Learner:
    return learner_of(Case(model=model))


@functools.cache
def _batch(model: str, sequences: int, overlong: bool, blow_up: bool, step: int) -> tuple[Batch, Advantages]:
    """Unlike lengths, several turns, versions of three policies; log-probabilities near the policy's own."""
    rng = np.random.default_rng(step)
    blank = []
    for i in range(sequences):
        record = TokenRecord()
        for _ in range(int(rng.integers(1, 4))):
            seen, said = rng.integers(0, 64, int(rng.integers(2, 9))), rng.integers(0, 64, int(rng.integers(1, 17)))
            record.add_observation("user", seen.tolist(), "")
            versions = rng.integers(step - 1, step + 1, len(said)).clip(0)
            record.add_action(said.tolist(), [-1.0] * len(said), versions.tolist(), "")
        ending = "token_limit" if overlong else "answered"
        blank.append(record.close(f"t{i}", float(i % 2), ending, dispatch=Dispatch(i)))
    scored = _scorer(model).logprobs(blank)
    noise = [rng.normal(0, 0.05, len(one)).astype(np.float32) for one in scored]
    values = [np.full(len(one), rng.normal()) for one in scored]
    if blow_up:
        values[sequences // 2] = np.full_like(values[sequences // 2], 1e38)
    near = [_with(t, one + shift) for t, one, shift in zip(blank, scored, noise, strict=True)]
    return Batch(near), Advantages(values)


def _with(trajectory: Trajectory, logprobs: np.ndarray) -> Trajectory:
    every = trajectory.logprobs.copy()
    every[trajectory.action_mask] = logprobs
    return replace(trajectory, logprobs=every)


def advance(learner: Learner, case: Case, step: int) -> dict[str, float]:
    batch, advantages = batch_of(case, step)
    if case.sft:
        sequences = [(t.token_ids, t.action_mask) for t in batch]
        return {**sft_step(learner, sequences), "held_out_loss": sft_loss(learner, sequences[:3])}
    return learner.update(batch, advantages, version=step)


def numbers_of(case: Case, group: RankGroup = ALONE) -> dict[str, Any]:
    """The weights (whole, at the first rank) and the metrics of two updates."""
    learner = learner_of(case, group)
    try:
        metrics = [advance(learner, case, step) for step in range(2)]
    except NotFinite as error:
        return {"refused": str(error)}
    shares = sum(getattr(p, "_local_tensor", p).numel() for p in learner.model.parameters())
    found = {"metrics": metrics, "weights": whole_tensors(learner.weights(), group), "elements": shares}
    logprobs = learner.logprobs(batch_of(case, 2)[0])
    return {**found, "logprobs": np.concatenate(logprobs)}
