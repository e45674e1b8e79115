"""`--dry-run`: what a run will do, in steps, tokens and memory, without computing anything."""

from __future__ import annotations

import math
from typing import Any

from training.config import Config

PROMPT_TOKENS = 64  # a guess: the prompt's length is known only once the data is tokenised
JSON_BYTES = 24  # a token in trajectories.jsonl: id, mask, logprob, version, text


def describe(config: Config) -> str:
    """The plan as a text for a person; token counts are upper bounds. Raises UserError for an unknown model."""
    shape = _shape(config)
    parameters = _parameters(config, shape)
    r, a, batch = config.rollout, config.algorithm, config.rollout.batch
    steps = config.run.steps
    start = config.data.train * a.start_samples if a.advantage == "spo" else 0
    held_out = config.data.test * (config.eval.samples + config.eval.greedy)
    evaluations = 2 + ((steps - 1) // config.eval.every if config.eval.every else 0)
    episodes = start + steps * batch + evaluations * held_out
    in_flight = math.ceil(batch * r.over_provision) if r.mode == "async" else batch
    tokens_a_step = r.batch_tokens or batch * config.env.episode_tokens
    cold = config.cold_start.steps
    weight = 2 if config.model.dtype == "bfloat16" else 4
    context = PROMPT_TOKENS + config.env.episode_tokens
    cache = 2 * weight * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * context * in_flight
    learner = parameters * (weight + weight + 8)  # weights, gradients, two fp32 moments of AdamW
    checkpoint = parameters * (weight + 8)
    rows = [
        ("model", f"{config.model.path}, {_count(parameters)} parameters, {config.model.dtype}"),
        ("environment", f"{config.env.id} in {config.env.sandbox}, {config.env.max_turns} turns at most"),
        ("cold start", f"{cold} steps of {config.cold_start.batch} demonstrations"),
        ("tracker start", f"{start} episodes ({a.start_samples} a prompt)" if start else "none"),
        (
            "rollouts",
            f"{r.mode}, {in_flight} in flight, batches of {_batch(config)}, staleness at most {r.max_staleness}",
        ),
        ("learning", f"{steps} steps, {a.advantage}{' + ASPO' if a.aspo else ''}, {config.learner.loss}"),
        ("evaluation", f"{evaluations} times {held_out} episodes"),
        ("episodes", f"{episodes:,} in all"),
        ("tokens", f"≤ {_count(tokens_a_step)} a step, ≤ {_count(episodes * config.env.episode_tokens)} in all"),
        ("memory", f"learner {_bytes(learner)}, sampler {_bytes(parameters * weight)} + KV cache ≤ {_bytes(cache)}"),
        (
            "disk",
            f"checkpoints {config.run.keep} x {_bytes(checkpoint)}, trajectories ≤ "
            f"{_bytes(steps * batch * context * JSON_BYTES)}",
        ),
    ]
    return "\n".join(f"{name:<14} {what}" for name, what in rows)


def _batch(config: Config) -> str:
    tokens = config.rollout.batch_tokens
    return f"{_count(tokens)} action tokens" if tokens else f"{config.rollout.batch} trajectories"


def _shape(config: Config) -> dict[str, int]:
    if config.model.path == "build":
        b = config.model.build
        return {"layers": b.layers, "kv_heads": b.kv_heads, "head_dim": b.head_dim}
    c = _hub_config(config.model.path)
    heads = c.num_attention_heads
    return {
        "layers": c.num_hidden_layers,
        "kv_heads": getattr(c, "num_key_value_heads", None) or heads,
        "head_dim": getattr(c, "head_dim", None) or c.hidden_size // heads,
    }


def _parameters(config: Config, shape: dict[str, int]) -> int:
    if config.model.path == "build":
        b = config.model.build
        query, key = b.heads * b.head_dim, 2 * b.kv_heads * b.head_dim
        layer = b.hidden_size * (2 * query + key + 3 * b.mlp_size + 2) + 2 * b.head_dim
        return math.ceil(b.vocabulary / 64) * 64 * b.hidden_size + b.layers * layer + b.hidden_size
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_hub_config(config.model.path)).num_parameters()


def _hub_config(path: str) -> Any:
    from transformers import AutoConfig

    from sandbox.errors import UserError

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f'model.path = "{path}" is no local model and no reachable hub id: {reason}') from None


def _count(n: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:g}"


def _bytes(n: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n / 2**10:.3g} KiB"
