"""One GPU: how much of it the learner uses, what the sampler makes, how far the plan of its memory is off.

    python benchmarks/gpu.py [--sizes 0.5 1.5] [--quick] [--device cuda]

Random weights in the shapes of Qwen3-0.6B and Qwen3-1.7B with a small vocabulary tied to the head, so that "0.5 B" is
0.5 billion parameters of matrix products. Batches are skewed as responses are: log-normal lengths, median 512 tokens.
The padded contestants do the same work on the same batch; only real tokens count. Each line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from solostream.agent.engine import Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.training.advantages.base import Advantages, per_token
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.kernels.attention import VARLEN
from solostream.training.learner.learner import Learner

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


def padded_update(policy: Any, batch: list[Trajectory], order: list[int], keep: int) -> Callable[[], None]:
    """A plain padded loop in bfloat16 autocast: micro-batches of `keep` sequences, each to its own longest."""
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-9, fused=True)
    total, device = sum(t.n_action_tokens for t in batch), policy.device

    def update() -> None:
        optimizer.zero_grad()
        for start in range(0, len(order), keep):
            part = [batch[i] for i in order[start : start + keep]]
            width = max(len(t) for t in part)
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


def learner_part(size: str, device: str, quick: bool) -> dict[str, Any]:
    """Packed against padded, in tokens a second; the packed update's share of the device's peak and its memory."""
    batch = skewed(6 if quick else 64, 300 if quick else 4096)
    tokens, rounds = sum(map(len, batch)), 1 if quick else 3
    row = {"part": "learner", "size": size, "tokens": tokens, "longest": max(map(len, batch)), "varlen kernel": VARLEN}
    packed, more = packed_seconds(size, device, batch, rounds)
    row |= {"packed tokens/s": round(tokens / packed), **more}
    fused, more = packed_seconds(size, device, batch, rounds, compiled=True)
    row |= {"compiled tokens/s": round(tokens / fused), "compiled mfu": more["mfu"]}
    row |= {"compiled peak GiB": more.get("peak GiB"), "packed / compiled": round(packed / fused, 2)}
    plain, by_length = list(range(len(batch))), sorted(range(len(batch)), key=lambda i: len(batch[i]))
    for name, order in (("padded", plain), ("padded, sorted", by_length)):
        spent = clock(padded_update(model(size, device), batch, order, MICRO), rounds, device)
        row |= {f"{name} tokens/s": round(tokens / spent), f"packed / {name}": round(spent / packed, 2)}
    return row


def packed_seconds(
    size: str, device: str, batch: list[Trajectory], rounds: int, compiled: bool = False
) -> tuple[float, dict[str, Any]]:
    more_settings = {"max_tokens_per_batch": 16_384, "compile": compiled}
    settings = LearnerConfig(lr=1e-9, dtype="bfloat16", **more_settings)
    learner, rows, seen = Learner(model(size, device), settings), Batch(batch), {}
    weighed = advantages(rows)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = clock(lambda: seen.update(learner.update(rows, weighed, drift=False)), rounds, device)
    more = {"parameters": learner.model.num_parameters(), "mfu": round(seen.get("mfu", 0), 4)}
    if device == "cuda":
        more["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return seconds, more


async def _sample(engine: HFEngine, episodes: int, tokens: int) -> tuple[float, list[Any]]:
    rng = np.random.default_rng(2)
    prompts = [rng.integers(2, VOCABULARY, PROMPT).tolist() for _ in range(episodes)]
    start = time.perf_counter()
    sampled = [engine.generate(p, Sampling(tokens, seed=i, key=str(i))) for i, p in enumerate(prompts)]
    found = await asyncio.gather(*sampled)
    return time.perf_counter() - start, [(p, g) for p, g in zip(prompts, found, strict=True)]


class _Tokenizer:
    """As many tokens as the model has, none of which ends a turn."""

    eos_token_id = None

    def __len__(self) -> int:
        return VOCABULARY

    def decode(self, ids: Any, **_: Any) -> str:
        return "x" * len(ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["x"] * len(ids)

    def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(VOCABULARY)}


def engine_part(size: str, device: str, episodes: int, quick: bool) -> dict[str, Any]:
    """Tokens a second, and how far the learner's log-probabilities are from those of the bfloat16 sampler."""
    length = 32 if quick else 256
    sampler = model(size, device, torch.bfloat16)
    sampler.generation_config.eos_token_id = sampler.config.eos_token_id = None

    async def run() -> tuple[float, list[Any]]:
        engine = HFEngine(sampler, _Tokenizer(), slots=episodes, max_len=PROMPT + length + 1)
        await _sample(engine, min(episodes, 4), 4)
        found = await _sample(engine, episodes, length)
        await engine.close()
        return found

    spent, found = asyncio.run(run())
    tokens = sum(len(g.token_ids) for _, g in found)
    row = {"part": "hf engine", "size": size, "episodes": episodes, "tokens/s": round(tokens / spent)}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.5", "1.5"], choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true", help="only where the time of a packed update goes")
    parser.add_argument("--compile", action="store_true", help="of the compiled one, with --profile")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__}), flush=True)
    if options.profile:
        with torch.profiler.profile() as profile:
            packed_seconds(options.sizes[0], options.device, skewed(64, 4096), 1, options.compile)
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=60))
        return
    for size in options.sizes:
        parts: list[Callable[[], dict[str, Any]]] = [partial(learner_part, size, options.device, options.quick)]
        parts += [partial(engine_part, size, options.device, n, options.quick) for n in (64, 256)]
        for part in parts:
            try:
                print(json.dumps(part()), flush=True)
            except Exception:  # a machine is lent for minutes: one part that fails must not take the others with it
                traceback.print_exc()
            if options.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
