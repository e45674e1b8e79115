"""What one decode step costs on a CPU, beside its floor: the hf engine's decoder, transformers' own forward, vLLM.

Models with random weights, one thread: "tiny" (0.4 M parameters), "small" (25 M), "smollm2" (SmolLM2-135M's shape).
Sequences of 128 to 160 tokens. The two decoders take turns on the same step, forward and sampling, and the least CPU
time of each counts: a busy machine changes that little. vLLM, in processes of its own, generates 33 tokens and 1; the
CPU seconds of all of its processes for one less those for the other, over 32, are a step.

  read, multiply   the floor: weights and keys are read once at the machine's speed, and products run at the speed of a
                   large one; both measured here, one thread. A step takes at least the longer

    python benchmarks/decode.py [--models tiny,small,smollm2] [--rows 8,64] [--dtype float32|bfloat16] [--vllm]
        [--profile]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # not this folder: sandbox.py and envs.py in it are no packages

import argparse  # noqa: E402
import asyncio  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from benchmarks.engine_parts.clock import children_s  # noqa: E402
from solostream.agent.engine import Sampling  # noqa: E402
from solostream.agent.engines.hf.cache import KEY_BLOCK, SlotCache, feed  # noqa: E402
from solostream.agent.engines.hf.forward import ModelForward  # noqa: E402
from solostream.agent.engines.hf.lean import LeanForward  # noqa: E402
from solostream.agent.engines.hf.sampling import sample  # noqa: E402
from solostream.agent.engines.scripted import byte_tokenizer  # noqa: E402
from solostream.agent.engines.spec import open_engine  # noqa: E402

#                       hidden, layers, heads, kv heads, MLP, vocabulary
SHAPES = {
    "tiny": (128, 2, 4, 2, 384, 258),
    "small": (512, 8, 8, 4, 1536, 258),
    "smollm2": (576, 30, 9, 3, 1536, 49_152),
}
PROMPT, TOKENS = 128, 33
REPEATS = {"tiny": 200, "small": 12, "smollm2": 4}


def make_model(name: str) -> Any:
    """A model that never ends a turn by itself."""
    torch.manual_seed(0)
    hidden, layers, heads, kv_heads, mlp, vocabulary = SHAPES[name]
    shape: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": hidden // heads}
    shape |= {"vocab_size": vocabulary, "max_position_embeddings": 1024, "eos_token_id": None, "bos_token_id": None}
    if name == "smollm2":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()


def floors(model: Any, rows: int, width: int) -> list[float]:
    """Milliseconds that a step takes at least: to read weights and keys, and to multiply. width: bytes of a number."""
    dtype = {4: torch.float32, 2: torch.bfloat16}[width]
    square, wide = torch.randn(2048, 2048).to(dtype), torch.randn(100_000_000)
    rate, speed = 2 * 2048**3 / _seconds(lambda: square @ square), 4 * len(wide) / _seconds(wide.sum)
    config = model.config
    parameters = model.num_parameters()
    parameters -= (
        0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    )  # only rows of it are read
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * (PROMPT + 16)
    return [1000 * width * (parameters + rows * keys) / speed, 1000 * 2 * rows * parameters / rate]


def _seconds(work: Any) -> float:
    times = []
    for _ in range(5):
        before = time.process_time()
        work()
        times.append(time.process_time() - before)
    return min(times[1:])


def decoders(name: str, model: Any, rows: int, profile: bool) -> list[float]:
    """CPU milliseconds of a step of the lean decoder and of the model's own forward, sampling included."""
    lengths = PROMPT + 1 + np.arange(rows) % 33
    ids, columns = np.full((rows, lengths.max() + 1), 7), int(lengths.max()) + KEY_BLOCK
    batch = feed(ids, lengths - 1, lengths, np.arange(rows), columns - 1, columns - 1, torch.device("cpu"))
    uniform, one, none = torch.rand(rows), torch.ones(rows), torch.zeros(rows, dtype=torch.int64)
    steps = [(forward, SlotCache(rows, columns)) for forward in (LeanForward(model), ModelForward(model))]
    least = [float("inf")] * len(steps)
    with torch.inference_mode():
        for _ in range(REPEATS[name] + 1):
            for i, (forward, cache) in enumerate(steps):
                before = time.thread_time()
                sample(forward(batch, cache), uniform, one, none, one)
                least[i] = min(least[i], time.thread_time() - before)
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            steps[0][0](batch, steps[0][1])
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))
    return [1000 * seconds for seconds in least]


async def vllm_ms(name: str, rows: int, dtype: str) -> float:
    """CPU milliseconds of a step, of this process and its children."""
    prompts = [[(7 * i + 3 * j) % 250 + 2 for j in range(PROMPT + i % 33)] for i in range(rows)]

    async def spent(tokens: int) -> float:
        before = time.process_time() + children_s()
        await asyncio.gather(*(engine.generate(p, Sampling(tokens, seed=i)) for i, p in enumerate(prompts)))
        return time.process_time() + children_s() - before

    with tempfile.TemporaryDirectory() as folder:
        make_model(name).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        engine, _ = await open_engine(f"vllm:{folder}", slots=rows, max_len=512, dtype=dtype)
        try:
            await spent(TOKENS)
            taken = [(await spent(TOKENS), await spent(1)) for _ in range(2)]
        finally:
            await engine.close()
    return 1000 * (min(long for long, _ in taken) - min(short for _, short in taken)) / (TOKENS - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--rows", default="8,64")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--profile", action="store_true", help="of the lean decoder, by operator")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # MODEL:ROWS, vLLM's cell, in this process
    a = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    if a.one:
        name, rows = a.one.split(":")
        print(f"ms {asyncio.run(vllm_ms(name, int(rows), a.dtype)):.2f}")
        return
    columns = ("lean", "own", *["vllm"] * a.vllm, "read", "multiply")
    print(f"{'model':<9}{'rows':>5}" + "".join(f"{column:>10}" for column in columns) + "   ms", flush=True)
    for name in a.models.split(","):
        model = make_model(name).to(getattr(torch, a.dtype))
        for rows in map(int, a.rows.split(",")):
            cells = decoders(name, model, rows, a.profile)
            cells += [apart(name, rows, a.dtype)] if a.vllm else []
            cells += floors(model, rows, 4 if a.dtype == "float32" else 2)
            print(f"{name:<9}{rows:>5}" + "".join(f"{cell:>10.2f}" for cell in cells), flush=True)


def apart(name: str, rows: int, dtype: str) -> float:
    """vLLM's cell, measured in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--one", f"{name}:{rows}", "--dtype", dtype]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ms ")]
    if not found:
        print(done.stderr[-2000:], file=sys.stderr)
    return float(found[0]) if found else float("nan")


if __name__ == "__main__":
    main()
