"""How much memory a run takes, part by part, and what would make it fit.

Sums of what is allocated at one time. The constants were measured: on CPUs (docs/results.md, "Memory") and on one GPU
(the same page, "One GPU": four of five ways to train are met within 6 %).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from solostream import hub
from solostream.agent.engines import four_bit
from solostream.errors import UserError
from solostream.training.config import colocation
from solostream.training.config.learner import LearnerConfig
from solostream.training.config.models import Config, ModelConfig

PROGRAM = {"cpu": 480 << 20, "cuda": 600 << 20}  # Python with torch and transformers; what CUDA takes for itself
VLLM_PROGRAM = 900 << 20  # its process on a CPU, without weights and cache
VLLM_CACHE = 256 << 20  # its KV cache on a CPU, where nothing is said
LOGITS = 3  # float32 copies of a chunk's logits at one time: log-softmax, its gradient, the gradient of the logits
FUSED_LOGITS = 2  # with learner.compile, in the computation's own precision: the logits and their gradient
HALF = 0.68  # activations under bfloat16 against float32: norms and the residual stream stay float32
HALVED = 0.58  # the same on a GPU where the weights themselves are bfloat16: norms are, too
COMPILED = 0.58  # of these, with learner.compile: what lies between two products is computed again
LEAN = 64_000_000  # parameters up to which the hf engine keeps fused copies of its own (agent/engines/hf/lean.py)
LEAN_KINDS = ("qwen3", "qwen2", "llama")
PASSING = "activations", "logits", "half copy"  # that an update takes; the rest lies there at all times
SHARE = "vLLM's share"
COLD_START, REINFORCEMENT = "the cold start", "reinforcement"  # the phases of a run
SECTIONS = {COLD_START: "cold_start.learner", REINFORCEMENT: "learner"}  # where each says how it trains
FIRST_COLUMNS = 256  # of the hf engine's KV cache, which doubles them when an episode needs more


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Of a causal language model; sizes in units. normed: queries and keys have norms of their own.

    linear: weights of linear layers but the head, which can lie in 4 bits.
    """

    kind: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    normed: bool
    linear: int = 0

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
        """Bytes a token that the backward pass keeps, in float32: counted on Llama, Qwen2 and Qwen3."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 4 * (6 * (self.hidden + q) + 2 * kv + 4 * self.mlp - (0 if self.normed else 2 * (q + kv)))
        if not config.gradient_checkpointing:
            return layer * self.layers
        return layer + self.returning + 4 * self.hidden * self.layers

    @property
    def returning(self) -> int:
        """Bytes a token on the way back through a layer that is still whole: of its gate and its residual stream."""
        return 4 * (2 * self.mlp + self.hidden)


def shape_of(config: Config) -> ModelShape:
    """Raises UserError for an unknown model."""
    if config.model.path == "build":
        b = config.model.build
        query, key = b.heads * b.head_dim, 2 * b.kv_heads * b.head_dim
        layer = b.hidden_size * (2 * query + key + 3 * b.mlp_size + 2) + 2 * b.head_dim
        rows = math.ceil(b.vocabulary / 64) * 64
        parameters = rows * b.hidden_size + b.layers * layer + b.hidden_size
        sizes = b.layers, b.hidden_size, b.heads, b.kv_heads, b.head_dim, b.mlp_size, rows
        return ModelShape("qwen3", parameters, *sizes, normed=True)
    import torch
    from transformers import AutoModelForCausalLM

    whole = _hub_config(config.model.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(whole)
    c = whole.get_text_config()
    heads = c.num_attention_heads
    return ModelShape(
        c.model_type,
        model.num_parameters(),
        c.num_hidden_layers,
        c.hidden_size,
        heads,
        getattr(c, "num_key_value_heads", None) or heads,
        getattr(c, "head_dim", None) or c.hidden_size // heads,
        getattr(c, "intermediate_size", None) or 4 * c.hidden_size,
        c.vocab_size,
        normed=any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
        linear=_linear(model),
    )


def _linear(model: Any) -> int:
    from torch.nn import Linear

    head = model.get_output_embeddings()
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear) and m is not head)


def _hub_config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        with hub.asked(path):
            found = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f'model.path = "{path}": {hub.no_model(path, error)}') from None
    quantized = (getattr(found, "quantization_config", None) or {}).get("quant_method", "mxfp4")
    if quantized != "mxfp4":  # that of gpt-oss, which transformers makes whole where it is loaded
        raise UserError(
            f'model.path = "{path}" is quantized ({quantized}), which cannot be trained: take the weights that it was '
            'made from, with model.dtype = "4bit" under learner.lora where memory is short'
        )
    return found


def memory(config: Config, shape: ModelShape, in_flight: int, context: int, device: str, total: int) -> dict[str, int]:
    """Part -> bytes on the device at the peak, in the phase that takes the most; see `of_phases`."""
    return larger(config, of_phases(config, shape, in_flight, context, device, total))[1]


def larger(config: Config, phases: dict[str, dict[str, int]]) -> tuple[str, dict[str, int]]:
    """The phase that takes the most, and its parts."""
    return max(phases.items(), key=lambda phase: peak(config, phase[1]))


def of_phases(
    config: Config, shape: ModelShape, in_flight: int, context: int, device: str, total: int
) -> dict[str, dict[str, int]]:
    """Phase -> part -> bytes on the device at its peak; an upper bound where a batch fills its token budget.

    in_flight: episodes. context: tokens of the longest. device: "cpu" or "cuda". total: bytes that the device has; of a
    share that `rollout.colocate` leaves to vLLM 0 gives the least.
    """
    batches = {COLD_START: config.cold_start.batch, REINFORCEMENT: config.rollout.batch}
    update = partial(_update, config, shape, device=device, context=context)
    learner = {phase: update(c, batch=batches[phase]) for phase, c in learners(config).items()}
    if config.run.engine == "vllm" and device == "cuda":
        sampler = _vllm_on_gpu(config, shape, context, total, learner)
    else:
        sampler = _sampler(config, shape, in_flight, context, device)
    return {phase: {name: size for name, size in (parts | sampler).items() if size} for phase, parts in learner.items()}


def learners(config: Config) -> dict[str, LearnerConfig]:
    """Phase of the run -> what trains in it; one after the other."""
    begun = {COLD_START: config.cold_start.learner} if config.cold_start.phases or config.cold_start.data else {}
    return {**begun, REINFORCEMENT: config.learner}


def _update(
    config: Config, shape: ModelShape, c: LearnerConfig, *, device: str, context: int, batch: int
) -> dict[str, int]:
    """What the learner `c` takes for a batch of so many trajectories or traces."""
    stored = learned(config)
    half, offloaded = _computes_in_half(c, device), offloads(config, device)
    trained = shape.adapters(c) or shape.parameters
    rows = max(min(c.max_tokens_per_batch, batch * context), context)  # a longer sequence goes alone
    fused = c.compile and not c.entropy_coef  # the gradient of an entropy bonus is torch's own
    logit = FUSED_LOGITS * (2 if half else 4) if fused else LOGITS * 4  # bytes
    logits = logit * min(c.logits_chunk, rows) * shape.vocabulary
    embedding = 4 * shape.vocabulary * shape.hidden if not c.lora else 0
    master = 2 if c.masters == "bfloat16" or (offloaded and half) else 4
    halved = device == "cuda" and (stored if c.lora else master) == 2
    share = 1.0 if not half else HALF * COMPILED if c.compile else HALVED if halved else HALF
    # Autocast casts each float32 weight once a micro-batch; a base in bfloat16 is computed with as it lies there.
    wide = trained + (shape.parameters if c.lora and stored == 4 else 0)
    return {
        "program": PROGRAM[device],
        "base": _base(config, shape) if c.lora else 0,
        "weights": master * trained,
        "half copy": 2 * wide if half and master == 4 else 0,
        # Moved to the host one by one, the largest of them is the embedding's.
        "gradients": master * (shape.vocabulary * shape.hidden if offloaded else trained),
        "optimizer": 0 if offloaded else moments(c) * trained,
        "reference": master * trained if c.kl_coef else 0,
        "activations": round(rows * shape.activations(c) * share),
        "logits": _logits(c, shape, logits, embedding, round(rows * share)),
    }


def only_adapters(config: Config) -> bool:
    """Whether the weights under the adapters are never trained, not in a cold start either."""
    return config.learner.lora is not None and not (config.cold_start.phases or config.cold_start.data)


def small_base(config: Config) -> bool:
    """Whether the weights under adapters stay in `model.dtype`: no phase trains them.

    Those of a cold start are merged into them once, which rounds as what samples them in bfloat16 is rounded.
    """
    return all(c.lora is not None for c in learners(config).values())


def _wide(model: ModelConfig) -> int:
    """Bytes of a number that is not trained and not in 4 bits."""
    return 4 if model.dtype == "float32" else 2


def learned(config: Config) -> int:
    """Bytes of a number under adapters, where it is not in 4 bits: what a phase trains is float32, and stays so."""
    return _wide(config.model) if small_base(config) else 4


def _base(config: Config, shape: ModelShape) -> int:
    packed = shape.linear if config.model.dtype == "4bit" else 0
    return round(four_bit.BYTES * packed) + learned(config) * (shape.parameters - packed)


def _logits(config: LearnerConfig, shape: ModelShape, logits: int, embedding: int, tokens: int) -> int:
    """Bytes beside the activations. logits: of a chunk. embedding: of its gradient. tokens: that weigh float32."""
    # A layer that is computed again finds the logits gone: its own activations count there already.
    again = 0
    if config.gradient_checkpointing:
        again = tokens * (shape.activations(config) - 4 * shape.hidden * shape.layers)
    # The head's gradient stands beside its logits and stays; then the embedding's beside it where the two are tied.
    return max(logits + embedding - again, embedding, 2 * embedding - again)


def offloads(config: Config, device: str) -> bool:
    """Whether the optimizer lies apart from what computes; on a CPU it is there already. device: "cpu" or "cuda"."""
    return config.learner.offload_optimizer and device != "cpu"


def _computes_in_half(c: LearnerConfig, device: str) -> bool:
    return "bfloat16" in (c.dtype, c.masters) or (c.dtype == "auto" and device == "cuda")


def host_memory(config: Config, shape: ModelShape) -> dict[str, int]:
    """Part -> bytes in the CPU's memory, where the optimizer is there and the model is not."""
    sizes = {"program": PROGRAM["cpu"], "masters": 4 * shape.parameters, "gradients": 4 * shape.parameters}
    return {**sizes, "optimizer": moments(config.learner) * shape.parameters}


def peak(config: Config, parts: dict[str, int]) -> int:
    """Bytes at one time of what `memory` lists: in turns an update has the room in which vLLM samples."""
    both = sum(parts.values())
    if config.rollout.colocate != "turns":
        return both
    return both - min(sum(parts.get(name, 0) for name in PASSING), parts.get(SHARE, 0))


def _vllm_on_gpu(
    config: Config, shape: ModelShape, context: int, total: int, learner: dict[str, dict[str, int]]
) -> dict[str, int]:
    """vLLM takes a share of the whole device; where it gets the rest, at least its weights and the longest episode.

    learner: phase -> part -> bytes. vLLM starts once: it gets what every phase leaves.
    """
    if not colocation.takes_the_rest(config):
        return {SHARE: round(total * named_share(config))}
    sampled = _sampled(config, "cuda")
    least = sampled * (shape.parameters + context * _cached(shape))
    aside = PASSING if config.rollout.colocate == "turns" else ()
    kept = max(sum(size for name, size in parts.items() if name not in aside) for parts in learner.values())
    return {"vLLM's program": PROGRAM["cuda"], SHARE: max(total - PROGRAM["cuda"] - kept, least)}


def named_share(config: Config) -> float:
    """The part of a GPU that vLLM takes where it is not left the rest."""
    return float(config.engine.get("vllm", {}).get("gpu_memory_utilization") or 0.9)


def _sampled(config: Config, device: str) -> int:
    """Bytes of one number of the sampler's."""
    automatic = 2 if device == "cuda" else _wide(config.model)
    return {"float32": 4, "bfloat16": 2}.get(config.model.sampler_dtype, automatic)


def _cached(shape: ModelShape) -> int:
    """Numbers that the KV cache keeps of a token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim


def moments(config: LearnerConfig) -> int:
    """Bytes a trained parameter that AdamW keeps beside it; in 8 bits with a scale for each 256."""
    return 2 if config.moments == "8bit" else 2 * (2 if config.masters == "bfloat16" else 4)


def _sampler(config: Config, shape: ModelShape, in_flight: int, context: int, device: str) -> dict[str, int]:
    engine, options = config.run.engine, config.engine.get(config.run.engine, {})
    sampled = _sampled(config, device)
    if engine == "vllm":
        cache = int(options.get("cache_bytes") or VLLM_CACHE)
        return {"vLLM": VLLM_PROGRAM, "sampler": sampled * shape.parameters, "KV cache": cache}
    if engine != "hf":
        return {}
    lean = shape.kind in LEAN_KINDS and shape.parameters <= LEAN
    c = config.learner
    half = c.masters == "bfloat16" or (offloads(config, device) and _computes_in_half(c, device))
    lies = learned(config) if c.lora else 2 if half else 4
    steps = c.num_mini_batches * c.epochs
    second = sampled != lies or (config.rollout.mode == "async" and steps > 1)
    columns = min(FIRST_COLUMNS, context + 1) if config.rollout.mode == "async" else context + 1
    while columns <= context:
        columns *= 2
    rows = min(in_flight, options.get("concurrency") or in_flight)
    return {
        "sampler": sampled * shape.parameters * (lean + second),
        "KV cache": sampled * _cached(shape) * columns * rows,
    }


def available(device: str) -> tuple[int, int]:
    """(free, total) bytes of the CPU's memory, or of the GPU `device`."""
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info(torch.device(device))
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    found = {name.rstrip(":"): int(size) << 10 for name, size, *_ in lines}
    return min([found["MemAvailable"], *_group_room()]), found["MemTotal"]


def _group_room() -> list[int]:
    """What the control group of a container leaves, where it has a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [] if limit == "max" else [int(limit) - int(used)]
