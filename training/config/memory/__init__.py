"""How much memory a run takes, part by part, and what would make it fit.

Sums of what is allocated at one time. The constants were measured: on CPUs (docs/results.md, "Memory") and on one GPU
(the same page, "One GPU": four of five ways to train are met within 6 %).
"""

from __future__ import annotations

import math
from functools import partial

from solostream.agent.engines import four_bit
from solostream.training.config import colocation
from solostream.training.config.learner import LearnerConfig
from solostream.training.config.memory.shape import ModelShape
from solostream.training.config.memory.weights import COLD_START, REINFORCEMENT, learners, rank_to_send, small_base
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
GROWN = "KV cache as episodes grow"  # what doubling adds to it; the rest of it lies there from the start
SHARE = "vLLM's share"
ON_THE_WAY = "weights on their way"  # to an engine in other processes, between two updates
FIRST_COLUMNS = 256  # of the hf engine's KV cache, which doubles them when an episode needs more


def memory(
    config: Config, shape: ModelShape, episodes: int, context: int, device: str, total: int, trace: int = 0
) -> dict[str, int]:
    """Part -> bytes on the device at the peak, in the phase that takes the most; see `of_phases`."""
    return larger(config, of_phases(config, shape, episodes, context, device, total, trace))[1]


def larger(config: Config, phases: dict[str, dict[str, int]]) -> tuple[str, dict[str, int]]:
    """The phase that takes the most, and its parts."""
    return max(phases.items(), key=lambda phase: peak(config, phase[1]))


def of_phases(
    config: Config, shape: ModelShape, episodes: int, context: int, device: str, total: int, trace: int = 0
) -> dict[str, dict[str, int]]:
    """Phase -> part -> bytes on the device at its peak; an upper bound where a batch fills its token budget.

    Of one learner, where several share the weights out. What samples for them on GPUs is not in it.

    episodes: in flight. context: tokens of the longest. device: "cpu" or "cuda". total: bytes that the device has; of a
    share that `rollout.colocate` leaves to vLLM 0 gives the least. trace: tokens of the longest of `cold_start.data`; 0
    counts it like an episode.
    """
    longest = {COLD_START: trace or context, REINFORCEMENT: max(context, trace if config.learner.imitation else 0)}
    batches = {COLD_START: config.cold_start.batch, REINFORCEMENT: config.rollout.batch}
    update = partial(_update, config, shape, device=device)
    learner = {p: update(c, context=longest[p], batch=batches[p]) for p, c in learners(config).items()}
    if config.cluster.used and device == "cuda":
        sampler = {}  # in other processes, on GPUs of their own
    elif config.run.engine == "vllm" and device == "cuda":
        sampler = _vllm_on_gpu(config, shape, context, total, learner)
    else:
        sampler = _sampler(config, shape, episodes, context, device)
    return {phase: {name: size for name, size in (parts | sampler).items() if size} for phase, parts in learner.items()}


def in_flight(config: Config) -> int:
    """Episodes that are played at one time."""
    r = config.rollout
    return max(round(r.batch * r.over_provision), r.batch) if r.mode == "async" else r.batch


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
    shared = {
        "base": _base(config, shape) if c.lora else 0,
        "weights": master * trained,
        # Moved to the host one by one, the largest of them is the embedding's.
        "gradients": master * (shape.vocabulary * shape.hidden if offloaded else trained),
        "optimizer": 0 if offloaded else optimizer_bytes(c, shape),
        "reference": master * trained if c.kl_coef else 0,
    }
    ranks = config.cluster.learners
    return {
        "program": PROGRAM[device],
        **{name: math.ceil(size / ranks) for name, size in shared.items()},
        "made whole": _made_whole(shape, stored if c.lora else master) if ranks > 1 else 0,
        "half copy": 2 * wide if half and master == 4 else 0,
        "activations": round(rows * shape.activations(c) * share),
        "logits": _logits(c, shape, logits, embedding, round(rows * share)),
    }


def _made_whole(shape: ModelShape, number: int) -> int:
    """Bytes of what FSDP2 has whole at a rank: embedding and head, a layer, and the next one that is on its way."""
    return number * (shape.parameters - shape.linear + 2 * shape.linear // shape.layers)


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
    """Part -> bytes in the CPU's memory, where the model is on a GPU; nothing where all that counts is there, too."""
    sizes = {ON_THE_WAY: _on_the_way(config, shape, "cuda")}
    if offloads(config, "cuda"):
        sizes |= dict.fromkeys(("masters", "gradients"), 4 * shape.parameters)
        sizes["optimizer"] = moments(config.learner) * shape.parameters
    sizes = {name: size for name, size in sizes.items() if size}
    return {"program": PROGRAM["cpu"], **sizes} if sizes else {}


def _on_the_way(config: Config, shape: ModelShape, device: str) -> int:
    """Bytes of whole weights in the file in memory through which an engine on this machine gets them."""
    apart = config.run.engine in ("vllm", "server") and not config.cluster.used and not rank_to_send(config)
    return _sampled(config, device) * shape.parameters if apart else 0


def peak(config: Config, parts: dict[str, int]) -> int:
    """Bytes at one time of what `memory` lists.

    In turns an update has the room in which vLLM samples; and nothing is on its way while one is computed, after which
    its gradients are gone.
    """
    updating = sum(parts.get(name, 0) for name in PASSING)
    asleep = parts.get(SHARE, 0) if config.rollout.colocate == "turns" else 0
    sent = min(updating + parts.get("gradients", 0), parts.get(ON_THE_WAY, 0))
    return sum(parts.values()) - min(updating, asleep) - sent


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


def optimizer_bytes(config: LearnerConfig, shape: ModelShape) -> int:
    """What stands beside all trained parameters: AdamW's two moments, or Muon's momentum alone of its matrices."""
    trained = shape.adapters(config) or shape.parameters
    matrices = trained if config.lora else shape.linear  # all adapters are; embeddings, head and norms are AdamW's
    own = matrices if config.optimizer == "muon" else 0
    return moments(config) * (trained - own) + 4 * own


def _sampler(config: Config, shape: ModelShape, episodes: int, context: int, device: str) -> dict[str, int]:
    engine, options = config.run.engine, config.engine.get(config.run.engine, {})
    sampled = _sampled(config, device)
    way = {ON_THE_WAY: _on_the_way(config, shape, device)} if device == "cpu" else {}  # a GPU's are in `host_memory`
    if engine == "vllm":
        cache = int(options.get("cache_bytes") or VLLM_CACHE)
        return {"vLLM": VLLM_PROGRAM, "sampler": sampled * shape.parameters, "KV cache": cache} | way
    if engine != "hf":
        return way
    copies = int(_is_lean(shape)) + int(_samples_from_a_copy(config, sampled, device))
    rows = min(episodes, options.get("concurrency") or episodes)
    column = sampled * _cached(shape) * rows  # one token of each
    first, last = _columns(config, context)
    return {
        "sampler": sampled * shape.parameters * copies,
        "KV cache": column * first,
        GROWN: column * (last - first),
    }


def _is_lean(shape: ModelShape) -> bool:
    """Whether the hf engine has fused copies of the weights."""
    return shape.kind in LEAN_KINDS and shape.parameters <= LEAN


def _samples_from_a_copy(config: Config, sampled: int, device: str) -> bool:
    """Whether the hf engine cannot sample from the learner's own weights.

    They lie in another process, are of another precision, or change while episodes go on under those from before: in
    lockstep, and in an asynchronous update of several steps. sampled: bytes of a number of the sampler's.
    """
    c = config.learner
    half = c.masters == "bfloat16" or (offloads(config, device) and _computes_in_half(c, device))
    computed = learned(config) if c.lora else 2 if half else 4
    mode = config.rollout.mode
    steps = mode == "async" and c.num_mini_batches * c.epochs > 1
    return config.cluster.used or sampled != computed or mode == "lockstep" or steps


def _columns(config: Config, context: int) -> tuple[int, int]:
    """Columns of the hf engine's KV cache at the start, and where an episode needs `context` tokens."""
    first = last = min(FIRST_COLUMNS, context + 1) if config.rollout.mode == "async" else context + 1
    while last <= context:
        last *= 2
    return first, last
