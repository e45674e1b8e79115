"""One GPU: how much of it the learner uses, what the sampler makes, how far the plan of its memory is off.

    python benchmarks/gpu.py [--sizes 0.5 1.5] [--parts learner engine …] [--quick] [--device cuda]

settings: the packed update, compiled, with micro-batches and chunks of several sizes. profile: where its time goes.
attention: the kernels for sequences of any length that this torch has, alone. learner: packed against padded, as TRL
pads too. engine: the hf engine, with CUDA graphs and without. memory: the plan of `--dry-run` against the peak.

Random weights in the shapes of Qwen3-0.6B and Qwen3-1.7B with a small vocabulary tied to the head, so that "0.5 B" is
0.5 billion parameters of matrix products. Batches are skewed as responses are: log-normal lengths, median 512 tokens.
The padded contestants do the same work on the same batch; only real tokens count. Each line is one JSON object, but for
MISSED and a goal.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.attention import varlen
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_parts.endless_tokenizer import EndlessTokenizer
from benchmarks.gpu_parts.goals import missed
from solostream.agent.engine import Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages, per_token
from solostream.training.batch import Batch
from solostream.training.config import validate
from solostream.training.config.learner import LearnerConfig
from solostream.training.config.memory import memory
from solostream.training.config.memory.shape import ModelShape, decoder_maps
from solostream.training.learner.kernels.attention import VARLEN, BlockLayout, packed_attention, varlen_attn
from solostream.training.learner.learner import Learner
from solostream.training.learner.optimizer.on_host import HostMasters

VOCABULARY, PROMPT, MICRO = 32_768, 64, 4
SHAPES = {  # billions of parameters -> hidden size, layers, heads, key heads, MLP
    "0.02": (256, 4, 4, 2, 768),
    "0.5": (1024, 28, 16, 8, 3072),
    "1.5": (2048, 28, 16, 8, 6144),
}


def model(size: str, device: str, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    hidden, layers, heads, kv_heads, mlp = SHAPES[size]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=hidden // heads if hidden < 1024 else 128,
        tie_word_embeddings=True, max_position_embeddings=8192, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        return Qwen3ForCausalLM(config).to(dtype)


def skewed(count: int, longest: int) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    lengths = np.minimum(np.exp(np.log(512) + 0.9 * rng.normal(size=count)).astype(int) + 16, longest)
    batch = []
    for i, length in enumerate(lengths.tolist()):
        record = TokenRecord()
        record.add_observation("user", rng.integers(2, VOCABULARY, PROMPT).tolist(), "")
        record.add_action(rng.integers(2, VOCABULARY, length).tolist(), [-10.0] * length, [0] * length, "")
        batch.append(record.close(f"t{i}", float(i % 2), "answered"))
    return batch


def advantages(batch: Batch) -> Advantages:
    values = np.random.default_rng(1).normal(size=len(batch))
    return Advantages(per_token(values.tolist(), batch))


def padded_update(policy: Any, batch: list[Trajectory], order: list[int], as_trl: bool = False) -> Callable[[], None]:
    """A plain padded loop in bfloat16 autocast: micro-batches to their own longest or, as TRL pads, to the batch's."""
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-9, fused=True)
    total, device = sum(t.n_action_tokens for t in batch), policy.device

    def update() -> None:
        optimizer.zero_grad()
        for start in range(0, len(order), MICRO):
            part = [batch[i] for i in order[start : start + MICRO]]
            width = max(len(t) for t in (batch if as_trl else part))
            ids, mask = torch.zeros(len(part), width, dtype=torch.int64), torch.zeros(len(part), width)
            for row, t in enumerate(part):
                ids[row, : len(t)], mask[row, PROMPT : len(t)] = torch.from_numpy(t.token_ids).long(), 1
            ids, mask = ids.to(device), mask.to(device)
            with torch.autocast(device.type, torch.bfloat16):
                hidden = policy.model(input_ids=ids, use_cache=False).last_hidden_state
                logits = policy.lm_head(hidden[:, PROMPT - 1 : -1])
            logprob = logits.float().log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]
            ((-logprob * mask[:, PROMPT:]).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    return update


def clock(update: Callable[[], Any], rounds: int, device: str) -> float:
    """Median seconds of a call, after one that does not count."""
    seconds = []
    for i in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        update()
        if device == "cuda":
            torch.cuda.synchronize()
        if i:
            seconds.append(time.perf_counter() - start)
    return median(seconds)


def learner_part(size: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Packed against padded, in tokens a second; the packed update's share of the device's peak and its memory."""
    batch = skewed(6 if quick else 64, 300 if quick else 4096)
    tokens, rounds = sum(map(len, batch)), 1 if quick else 3
    row = {"tokens": tokens, "longest": max(map(len, batch)), "varlen kernel": VARLEN}
    packed, more = packed_seconds(size, device, batch, rounds)
    row |= {"packed tokens/s": round(tokens / packed), **more}
    fused, more = packed_seconds(size, device, batch, rounds, compiled=True)
    row |= {"compiled tokens/s": round(tokens / fused), "compiled mfu": more["mfu"]}
    row |= {"compiled peak GiB": more.get("peak GiB"), "packed / compiled": round(packed / fused, 2)}
    plain, by_length = list(range(len(batch))), sorted(range(len(batch)), key=lambda i: len(batch[i]))
    for name, order in (("padded", plain), ("padded, sorted", by_length), ("padded as TRL", plain)):
        update = padded_update(model(size, device), batch, order, name == "padded as TRL")
        spent = clock(update, rounds, device)
        row |= {f"{name} tokens/s": round(tokens / spent), f"packed / {name}": round(spent / packed, 2)}
    yield row


def packed_seconds(
    size: str, device: str, batch: list[Trajectory], rounds: int, compiled: bool = False
) -> tuple[float, dict[str, Any]]:
    settings = LearnerConfig(lr=1e-9, dtype="bfloat16", max_tokens_per_batch=16_384, compile=compiled)
    return update_seconds(Learner(model(size, device), settings), batch, rounds)


def update_seconds(learner: Learner, batch: list[Trajectory], rounds: int) -> tuple[float, dict[str, Any]]:
    rows, seen, device = Batch(batch), {}, learner.scorer.device.type
    weighed = advantages(rows)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = clock(lambda: seen.update(learner.update(rows, weighed, drift=False)), rounds, device)
    more = {"parameters": learner.model.num_parameters(), "mfu": round(seen.get("mfu", 0), 4)}
    if device == "cuda":
        more["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return seconds, more


def settings_part(size: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """One model, compiled once; how a batch is cut is read anew by each update."""
    batch = skewed(6 if quick else 64, 300 if quick else 4096)
    learner = Learner(model(size, device), LearnerConfig(lr=1e-9, dtype="bfloat16", compile=True))
    for tokens, chunk in ((16_384, 4096), (16_384, 16_384), (32_768, 4096), (32_768, 8192), (65_536, 8192)):
        learner.config = learner.config.model_copy(update={"max_tokens_per_batch": tokens, "logits_chunk": chunk})
        learner.scorer.chunk = chunk
        try:
            spent, more = update_seconds(learner, batch, 1 if quick else 3)
        except UserError as error:  # out of memory on a smaller card
            yield {"tokens a micro-batch": tokens, "chunk": chunk, "error": str(error)}
            continue
        row = {"tokens a micro-batch": tokens, "chunk": chunk, "tokens/s": round(sum(map(len, batch)) / spent)}
        yield {**row, "ms": round(1000 * spent), **more}


def profile_part(size: str, device: str, quick: bool, tokens: int = 32_768) -> Iterator[dict[str, Any]]:
    """A compiled update by kind of kernel, and the share of it in which the GPU computed; then its longest kernels."""
    batch = Batch(skewed(6 if quick else 64, 300 if quick else 4096))
    settings = LearnerConfig(lr=1e-9, dtype="bfloat16", compile=True, max_tokens_per_batch=tokens)
    learner, weighed = Learner(model(size, device), settings), advantages(batch)
    for _ in range(2):
        learner.update(batch, weighed, drift=False)
    with torch.profiler.profile() as profile:
        spent = clock(lambda: learner.update(batch, weighed, drift=False), 1, device)
    on_gpu = [e for e in profile.key_averages() if e.self_device_time_total and str(e.device_type).endswith("CUDA")]
    kinds: dict[str, float] = {}
    for event in on_gpu:
        kind = next((kind for kind, marks in KERNELS.items() if any(m in event.key for m in marks)), "other")
        kinds[kind] = kinds.get(kind, 0) + event.self_device_time_total / 2000  # of two updates, in milliseconds
    busy = sum(kinds.values())
    yield {"ms": round(1000 * spent, 1), "GPU busy": round(busy / 1000 / spent, 3)} | {
        kind: round(ms, 1) for kind, ms in sorted(kinds.items(), key=lambda pair: -pair[1])
    }
    for event in sorted(on_gpu, key=lambda e: -e.self_device_time_total)[:24]:
        yield {"ms": round(event.self_device_time_total / 2000, 2), "calls": event.count // 2, "kernel": event.key[:88]}


KERNELS = {  # kind -> parts of kernels' names
    "attention": ("flash", "cudnn_generated", "fmha", "sdpa"),
    "products": ("gemm", "cutlass", "nvjet", "cublas", "xmma"),
    "optimizer": ("multi_tensor", "Adam", "foreach"),
    "layers, compiled": ("triton_",),
    "copies": ("Memcpy", "Memset", "copy"),
}


def attention_part(size: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Forward and backward of one layer's attention over the batch, in bfloat16."""
    lengths = [len(t) for t in skewed(6 if quick else 64, 300 if quick else 4096)]
    _, _, heads, kv_heads, _ = SHAPES[size]
    borders = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=device)
    layout = BlockLayout((), None, borders, max(lengths))
    shapes = [(1, n, sum(lengths), 128) for n in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(s, dtype=torch.bfloat16, device=device, requires_grad=True) for s in shapes)
    repeat = heads // kv_heads

    def ours() -> torch.Tensor:
        return packed_attention(torch.nn.Module(), q, k, v, None, layout=layout)[0]

    def repeated() -> torch.Tensor:
        heads_first = q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        rows = [x[0].transpose(0, 1).contiguous() for x in heads_first]
        return varlen_attn(*rows, borders, borders, layout.longest, layout.longest, window_size=(-1, 0))

    def cudnn() -> torch.Tensor:
        before, varlen._should_use_cudnn = varlen._should_use_cudnn, lambda _: True
        try:
            return repeated()
        finally:
            varlen._should_use_cudnn = before

    operations = 7 * heads * 128 * sum(n * n for n in lengths)  # causal: half of 4 forward, and of 10 backward
    for name, attend in (("as the learner does", ours), ("flash, heads repeated", repeated), ("cudnn", cudnn)):
        try:
            out = attend()
            there = clock(attend, 5, device)
            both = clock(lambda: attend().sum().backward(), 5, device)  # noqa: B023
            row = {"ms forward": round(1000 * there, 2), "ms both": round(1000 * both, 2)}
            yield {
                "kernel": name,
                **row,
                "TFLOP/s": round(operations / both / 1e12),
                "mean": out.float().abs().mean().item(),
            }
        except Exception as error:
            yield {"kernel": name, "error": str(error).splitlines()[0][:150]}


def memory_part(size: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Peaks of updates against what the plan says of their parts; the optimizer on the host beside it."""
    longest = 300 if quick else 32_768
    whole, long = skewed(6 if quick else 64, 300 if quick else 4096), one_long(longest)
    variants: dict[str, tuple[dict[str, Any], list[Trajectory]]] = {
        "packed": ({"max_tokens_per_batch": 16_384}, whole),
        "compiled": ({"max_tokens_per_batch": 16_384, "compile": True}, whole),
        "checkpointing, one of 32,768": ({"gradient_checkpointing": True, "max_tokens_per_batch": longest}, long),
        "lora": ({"lora": {"rank": 16}, "max_tokens_per_batch": 16_384}, whole),
        "optimizer on the host": ({"offload_optimizer": True, "max_tokens_per_batch": 16_384}, whole),
    }
    for name, (section, batch) in variants.items():
        gc.collect()  # gradients' hooks and what they are of refer to each other
        if device == "cuda":
            torch.cuda.empty_cache()
        learner = _learner(size, device, section)
        spent, more = update_seconds(learner, batch, 1)
        del learner
        plan = planned(size, section, batch)
        row = {"variant": name, "ms": round(1000 * spent), **more, "planned GiB": round(plan / 2**30, 2)}
        yield {**row, "plan / peak": round(plan / 2**30 / more["peak GiB"], 3)} if "peak GiB" in more else row


def _learner(size: str, device: str, section: dict[str, Any]) -> Learner:
    settings = LearnerConfig(lr=1e-9, dtype="bfloat16", **section)
    if settings.offload_optimizer:
        made = model(size, "cpu")
        return Learner(made, settings, masters=HostMasters(made, torch.device(device), torch.bfloat16))
    return Learner(model(size, device, torch.bfloat16 if settings.lora else torch.float32), settings)


def one_long(length: int) -> list[Trajectory]:
    record, rng = TokenRecord(), np.random.default_rng(3)
    record.add_observation("user", rng.integers(2, VOCABULARY, PROMPT).tolist(), "")
    response = rng.integers(2, VOCABULARY, length - PROMPT).tolist()
    record.add_action(response, [-10.0] * len(response), [0] * len(response), "")
    return [record.close("long", 1.0, "answered")]


def planned(size: str, section: dict[str, Any], batch: list[Trajectory]) -> int:
    """Bytes of the learner's parts, without what CUDA takes for itself."""
    hidden, layers, heads, kv_heads, mlp = SHAPES[size]
    dtype = "bfloat16" if "lora" in section else "float32"
    config = validate({"model": {"dtype": dtype}, "learner": {"dtype": "bfloat16", **section}})
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"batch": len(batch)})})
    parameters = model(size, "meta").num_parameters()
    sizes = layers, hidden, heads, kv_heads, 128, mlp, VOCABULARY
    maps = decoder_maps(layers, hidden, 128 * heads, 128 * kv_heads, mlp)
    shape = ModelShape("qwen3", parameters, *sizes, normed=True, maps=maps)
    parts = memory(config, shape, 0, max(map(len, batch)), "cuda", 0)
    return sum(bytes_ for name, bytes_ in parts.items() if name not in ("program", "sampler", "KV cache"))


async def _sample(engine: HFEngine, episodes: int, tokens: int) -> tuple[float, list[Any]]:
    rng = np.random.default_rng(2)
    prompts = [rng.integers(2, VOCABULARY, PROMPT).tolist() for _ in range(episodes)]
    start = time.perf_counter()
    sampled = [engine.generate(p, Sampling(tokens, seed=i, key=str(i))) for i, p in enumerate(prompts)]
    found = await asyncio.gather(*sampled)
    return time.perf_counter() - start, [(p, g) for p, g in zip(prompts, found, strict=True)]


def engine_part(size: str, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    for episodes, graphs in ((64, False), (64, True), (256, True)):
        yield sampled(size, device, episodes, graphs, quick)


def sampled(size: str, device: str, episodes: int, graphs: bool, quick: bool) -> dict[str, Any]:
    """Tokens a second, and how far the learner's log-probabilities are from those of the bfloat16 sampler."""
    length = 32 if quick else 256
    sampler = model(size, device, torch.bfloat16)
    sampler.generation_config.eos_token_id = sampler.config.eos_token_id = None

    async def run() -> tuple[float, list[Any]]:
        told = {"slots": episodes, "max_len": PROMPT + length + 1, "graphs": graphs}
        engine = HFEngine(sampler, EndlessTokenizer(VOCABULARY), **told)
        await _sample(engine, episodes, 4)
        found = await _sample(engine, episodes, length)
        await engine.close()
        return found

    spent, found = asyncio.run(run())
    tokens = sum(len(g.token_ids) for _, g in found)
    row = {"episodes": episodes, "graphs": graphs, "tokens/s": round(tokens / spent)}
    row["ms a step"] = round(1000 * spent / length, 2)
    batch = []
    for i, (prompt, generation) in enumerate(found[:32]):
        record = TokenRecord()
        record.add_observation("user", prompt, "")
        record.add_action(generation.token_ids, generation.logprobs, generation.versions, "")
        batch.append(record.close(f"t{i}", 0.0, "answered"))
    learner = Learner(sampler.float(), LearnerConfig(dtype="bfloat16"))
    pairs = zip(learner.logprobs(batch), batch, strict=True)
    d = np.abs(np.concatenate([a - t.logprobs[t.action_mask] for a, t in pairs]))
    return {**row, "mismatch mean": round(float(d.mean()), 5), "mismatch max": round(float(d.max()), 4)}


PARTS: dict[str, Callable[[str, str, bool], Iterator[dict[str, Any]]]] = {
    "attention": attention_part,
    "settings": settings_part,
    "profile": profile_part,
    "learner": learner_part,
    "engine": engine_part,
    "memory": memory_part,
}


def main() -> int:
    """1 where a part failed; a goal that is missed is said, and is no failure."""
    failed = 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.5", "1.5"], choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__}), flush=True)
    for size in options.sizes:
        for name in options.parts:
            started = time.perf_counter()
            try:
                for row in PARTS[name](size, options.device, options.quick):
                    print(json.dumps({"part": name, "size": size, **row}), flush=True)
                    if options.device == "cuda":
                        print("".join(f"MISSED  {name} {size}: {goal}\n" for goal in missed(row)), end="", flush=True)
            except Exception:  # a machine is lent for minutes: one part that fails must not take the others with it
                traceback.print_exc()
                failed = 1
            print(f"# {name} {size}: {time.perf_counter() - started:.0f} s", flush=True)
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
    return failed


if __name__ == "__main__":
    sys.exit(main())
