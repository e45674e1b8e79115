"""`--dry-run`: what a run will do, in steps, tokens and memory, without computing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from solostream import hub
from solostream.training.config import Config
from solostream.training.config.learner import LearnerConfig

PROMPT_TOKENS = 64  # a guess: the prompt's length is known only once the data is tokenised
JSON_BYTES = 24  # a token in trajectories.jsonl: id, mask, logprob, version, text
LOGITS = 4  # float32 copies of a chunk's logits at one time: as they come, log-softmax, softmax, the gradient


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a causal language model; sizes in units."""

    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int

    def adapters(self, config: LearnerConfig) -> int:
        """Parameters of LoRA; targets that this does not know are counted as all linear layers."""
        if config.lora is None:
            return 0
        h, q, kv, m = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.mlp
        sides = {"q": h + q, "k": h + kv, "v": h + kv, "o": q + h, "gate": h + m, "up": h + m, "down": m + h}
        named = {f"{name}_proj": size for name, size in sides.items()}
        chosen = [named[target] for target in config.lora.targets if target in named] or named.values()
        return self.layers * config.lora.rank * sum(chosen)

    def activations(self, config: LearnerConfig) -> int:
        """Bytes a token that the backward pass keeps, in float32: measured on Qwen3, see `test_plan`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 4 * (6 * (self.hidden + q) + 2 * kv + 4 * self.mlp)
        return layer + 4 * self.hidden * self.layers if config.gradient_checkpointing else layer * self.layers


@dataclass(frozen=True, slots=True)
class Plan:
    """Upper bounds: episodes, tokens, bytes."""

    shape: Shape
    in_flight: int
    start: int
    evaluations: int
    held_out: int
    episodes: int
    tokens_a_step: int
    tokens: int
    learner: int  # weights, gradients, optimizer, reference
    micro_batch: int
    sampler: int
    cache: int
    checkpoint: int
    trajectories: int


def plan(config: Config, pool: int, tests: int) -> Plan:
    """pool, tests: problems to train on and held out. Raises UserError for an unknown model."""
    shape = _shape(config)
    r, a, c, batch = config.rollout, config.algorithm, config.learner, config.rollout.batch
    in_flight = max(round(batch * r.over_provision), batch) if r.mode == "async" else batch
    start = pool * a.tracker.start_samples if a.uses_tracker else 0
    held_out = tests * (config.eval.samples + config.eval.greedy)
    evaluations = 2 + ((config.run.steps - 1) // config.eval.every if config.eval.every else 0)
    # what is in flight when the last batch is taken stops there; the last evaluation plays once more without the tool
    episodes = start + config.run.steps * batch + evaluations * held_out + tests
    weight = 2 if config.model.dtype == "bfloat16" else 4
    sampled = {"float32": 4, "bfloat16": 2}.get(config.model.sampler_dtype, weight)
    context = PROMPT_TOKENS + config.env.episode_tokens
    adapters = shape.adapters(c)
    frozen = shape.parameters * weight if c.lora else 0
    trained = adapters or shape.parameters
    reference = (frozen + 4 * trained) if c.kl_coef else 0
    rows = min(c.max_tokens_per_batch, batch * context)
    return Plan(
        shape=shape,
        in_flight=in_flight,
        start=start,
        evaluations=evaluations,
        held_out=held_out,
        episodes=episodes,
        tokens_a_step=r.batch_tokens or batch * config.env.episode_tokens,
        tokens=episodes * config.env.episode_tokens,
        learner=frozen + trained * (4 + 4 + 8) + reference,  # float32: weights, gradients, two moments of AdamW
        micro_batch=rows * shape.activations(c) + LOGITS * 4 * min(c.logits_chunk, rows) * shape.vocabulary,
        sampler=shape.parameters * sampled,
        cache=2 * sampled * shape.layers * shape.kv_heads * shape.head_dim * context * in_flight,
        checkpoint=shape.parameters * (weight if c.lora else 4) + frozen + trained * (12 if c.lora else 8) + reference,
        trajectories=config.run.steps * batch * context * JSON_BYTES,
    )


def describe(config: Config) -> str:
    """The plan as a text for a person. Raises UserError for whatever the run would refuse before it computes."""
    from solostream.training.run import setup
    from solostream.training.sft.cold_start import sft_batches

    sft_batches(config)
    train, test = setup.problems(config, lambda remark: None)
    setup.environment(config, test, None).close()
    r, a, p = config.rollout, config.algorithm, plan(config, len(train), len(test))
    batch = f"{_count(r.batch_tokens)} action tokens" if r.batch_tokens else f"{r.batch} trajectories"
    rows = [
        ("model", f"{config.model.path}, {_count(p.shape.parameters)} parameters, {config.model.dtype}"),
        ("data", f"{len(train)} problems to train on, {len(test)} held out; {setup.described(config)}"),
        ("environment", f"{config.env.id} in {config.env.sandbox}, {config.env.max_turns} turns at most"),
        ("cold start", config.cold_start.planned),
        ("tracker start", f"{p.start} episodes ({a.tracker.start_samples} a prompt)" if p.start else "none"),
        ("rollouts", f"{r.mode}, {p.in_flight} in flight, batches of {batch}, staleness at most {r.max_staleness}"),
        ("learning", f"{config.run.steps} steps, {' + '.join(a.components)}, {config.learner.loss}"),
        ("evaluation", f"{p.evaluations} times {p.held_out} episodes, and {len(test)} without the tool"),
        ("episodes", f"{p.episodes:,} in all"),
        ("tokens", f"≤ {_count(p.tokens_a_step)} a step, ≤ {_count(p.tokens)} in all"),
        (
            "memory",
            f"learner {_bytes(p.learner)} + micro-batch ≤ about {_bytes(p.micro_batch)}, "
            f"sampler {_bytes(p.sampler)} + KV cache ≤ {_bytes(p.cache)}",
        ),
        ("disk", f"checkpoints {config.run.keep} x {_bytes(p.checkpoint)}, trajectories ≤ {_bytes(p.trajectories)}"),
    ]
    return "\n".join(f"{name:<14} {what}" for name, what in rows)


def _shape(config: Config) -> Shape:
    if config.model.path == "build":
        b = config.model.build
        query, key = b.heads * b.head_dim, 2 * b.kv_heads * b.head_dim
        layer = b.hidden_size * (2 * query + key + 3 * b.mlp_size + 2) + 2 * b.head_dim
        rows = math.ceil(b.vocabulary / 64) * 64
        parameters = rows * b.hidden_size + b.layers * layer + b.hidden_size
        return Shape(parameters, b.layers, b.hidden_size, b.heads, b.kv_heads, b.head_dim, b.mlp_size, rows)
    import torch
    from transformers import AutoModelForCausalLM

    whole = _hub_config(config.model.path)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(whole).num_parameters()
    c = whole.get_text_config()
    heads = c.num_attention_heads
    return Shape(
        parameters,
        c.num_hidden_layers,
        c.hidden_size,
        heads,
        getattr(c, "num_key_value_heads", None) or heads,
        getattr(c, "head_dim", None) or c.hidden_size // heads,
        getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
        c.vocab_size,
    )


def _hub_config(path: str) -> Any:
    from transformers import AutoConfig

    from solostream.errors import UserError

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f'model.path = "{path}": {hub.no_model(path, error)}') from None


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
