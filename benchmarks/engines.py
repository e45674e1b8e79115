"""Engines side by side: multi-turn episodes with the real fork sandbox, and where the CPU's time goes.

Random weights write no code, so every turn's text is replaced by a call of fixed code on its way to the environment;
the engine's work is the same: ragged prompts, three turns of 64 tokens, an observation after the first two. Models are
in float32, on one thread; "tiny" has 0.4 M parameters, "small" 25 M (what a token costs outside the model does not
depend on its size, its share does). Every row runs in a process of its own, within --limit seconds.

ms/token is CPU time, of all processes together, per generated token; the shares are shares of it (on a busy machine
wall time would say how busy it is):
  model    forward passes, sampling, scheduling: an HF engine's steps, vLLM's own processes
  front    the engine's other work in this process: an HF engine's queue, vLLM's front end, our HTTP client
  sandbox  the interpreters and their keeper, and what calling them costs in this process
  glue     everything else in this process: rollout, chat rendering, parsing, rewards, ledger, event loop

    python benchmarks/engines.py [--quick] [--model tiny|small] [--engines hf,vllm,...] [--save rows.jsonl]
    python benchmarks/engines.py --mismatch     # sampler against learner, float32 and bfloat16
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # not this folder: sandbox.py and envs.py in it are no packages

import argparse  # noqa: E402
import asyncio  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import AsyncIterator, Callable, Iterator  # noqa: E402
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress  # noqa: E402
from typing import Any  # noqa: E402

import psutil  # noqa: E402
import torch  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from benchmarks.engine_parts.clock import calls_charged, charge_tasks, charged, children_s, spent, tree_s  # noqa: E402
from benchmarks.engine_parts.peers import ContinuousBatching, GenerateInRounds  # noqa: E402
from benchmarks.engine_parts.server import served  # noqa: E402
from solostream.agent.chat_template import Chat  # noqa: E402
from solostream.agent.engine import Engine, Sampling  # noqa: E402
from solostream.agent.engines.scripted import byte_tokenizer  # noqa: E402
from solostream.agent.engines.spec import open_engine  # noqa: E402
from solostream.agent.rollout import rollout  # noqa: E402
from solostream.envs import Task, ToolEnv  # noqa: E402
from solostream.sandbox import Sandbox, Session, open_sandbox  # noqa: E402
from solostream.training.losses.kl import estimates  # noqa: E402

TURN_TOKENS, MAX_TOKENS = 64, 400
CALL = "```python\nsum(i * i for i in range(1000))\n```\n"
SAMPLING = Sampling(TURN_TOKENS)
MODELS = {"tiny": (128, 2, 4), "small": (512, 8, 8)}  # hidden size, layers, heads
NAMES = ("hf", "vllm", "server", "continuous", "generate")
PEERS = ("continuous", "generate")  # slow on CPUs: one round of episodes is measured
PARTS = ("model", "front", "sandbox", "glue")
FRONT = {part: "front" for part in ("/vllm/", "/agent/hf/", "/engine_parts/peers.py")}  # whose tasks are an engine's
Seconds = Callable[[], float]  # CPU seconds that the model has used so far


class Charged:
    """A sandbox, or one of its sessions, whose calls are charged to the account "sandbox"."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def open(self) -> Session:
        return Charged(await charged("sandbox", self._inner.open()))

    async def run(self, code: str, *, timeout: float | None = None) -> Any:
        return await charged("sandbox", self._inner.run(code, timeout=timeout))

    async def close(self) -> None:
        await charged("sandbox", self._inner.close())


def fork(**options: Any) -> Sandbox:
    return Charged(open_sandbox("fork", **options))


class Caller(ToolEnv):
    """Whatever the policy says: two calls, then an answer."""

    stops = ()

    def complete(self, text: str) -> int | None:
        return None

    async def astep(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return await super().astep(CALL if len(self.trace) < 2 else "\\boxed{332833500}")


@asynccontextmanager
async def opened(name: str, folder: str, size: str, slots: int) -> AsyncIterator[tuple[Engine, Seconds, bool]]:
    """An engine, the clock of its model, and whether that model runs in this process."""
    charge_tasks(asyncio.get_running_loop(), FRONT)
    async with AsyncExitStack() as stack:
        engine: Engine
        inside = name not in ("vllm", "server")
        if name == "generate":
            engine = rounds = GenerateInRounds(make_model(size), TURN_TOKENS)
            clock: Seconds = lambda: rounds.cpu_s
        elif name == "continuous":
            engine = peer = ContinuousBatching(make_model(size), TURN_TOKENS, slots)
            clock = peer.cpu_s
        elif name == "hf":
            engine, _ = await open_engine(folder, slots=slots, max_len=MAX_TOKENS + 1)
            engine._step = calls_charged("model", engine._step)  # type: ignore[attr-defined]
            clock = lambda: spent()["model"]
        elif name == "vllm":
            engine, _ = await open_engine(f"vllm:{folder}", slots=slots, max_len=MAX_TOKENS + 1)
            (core,) = (p.pid for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline()))
            clock = lambda: tree_s(core)
        else:
            url, pid = await stack.enter_async_context(served(folder, slots, MAX_TOKENS + 1))
            engine, _ = await open_engine(url)
            clock = lambda: tree_s(pid)
        stack.push_async_callback(engine.close)
        yield engine, clock, inside


async def measure(engine: Engine, clock: Seconds, inside: bool, level: int, rounds: int) -> dict[str, float]:
    """`rounds` episodes in each of `level` environments at a time: what they took."""
    tasks = [Task(str(i), "Add up squares. " * (1 + i % 4), "332833500") for i in range(16)]
    envs = [Caller(tasks, sandbox=fork, system_prompt="", max_turns=4) for _ in range(level)]
    chat = Chat(byte_tokenizer())
    generate = engine.generate
    engine.generate = lambda *request: charged("front", generate(*request))  # type: ignore[assignment,method-assign]

    async def worker(index: int, episodes: int) -> int:
        tokens = 0
        for n in range(episodes):
            seed = index * 1000 + n
            done = await rollout(envs[index], engine, chat, sampling=SAMPLING, max_tokens=MAX_TOKENS, seed=seed)
            tokens += done.n_action_tokens
        return tokens

    def now() -> dict[str, float]:
        accounts = {name: spent()[name] for name in ("front", "sandbox", "clock")}
        times = {"wall": time.perf_counter(), "own": time.process_time(), "others": children_s(), "model": clock()}
        return {**times, **accounts}

    try:
        await asyncio.gather(*(worker(i, 1) for i in range(level)))  # sandboxes started, caches made
        before = now()
        tokens = sum(await asyncio.gather(*(worker(i, rounds) for i in range(level))))
        took = {name: value - before[name] for name, value in now().items()}
    finally:
        for env in envs:
            await env.aclose()
    interpreters = took["others"] - (0.0 if inside else took["model"])
    glue = took["own"] - took["front"] - took["sandbox"] - took["clock"] - (took["model"] if inside else 0.0)
    parts = {"model": took["model"], "front": took["front"], "sandbox": took["sandbox"] + interpreters, "glue": glue}
    return {"tokens": tokens, "wall_s": took["wall"], **{f"{part}_s": parts[part] for part in PARTS}}


def make_model(size: str, scale: float = 1.0) -> Any:
    """A Qwen3 that never ends a turn by itself."""
    torch.manual_seed(0)
    hidden, layers, heads = MODELS[size]
    shape = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": hidden // heads}
    config = Qwen3Config(**shape, vocab_size=258, max_position_embeddings=512, eos_token_id=None)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


@contextmanager
def model_folder(size: str, scale: float = 1.0) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        make_model(size, scale).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        yield folder


async def measure_row(name: str, size: str, level: int) -> dict[str, float]:
    with model_folder(size) as folder:
        async with opened(name, folder, size, level) as (engine, clock, inside):
            return await measure(engine, clock, inside, level, 1 if name in PEERS else max(2, min(16, 256 // level)))


def show(name: str, level: int, row: dict[str, Any]) -> None:
    parts = [row[f"{part}_s"] for part in PARTS]
    shares = "".join(f"{part / sum(parts):>9.1%}" for part in parts)
    speed, cost = row["tokens"] / row["wall_s"], 1000 * sum(parts) / row["tokens"]
    print(f"{name:<11}{level:>9}{speed:>10.0f}{cost:>10.3f}{shares}   load {row['load']:.1f}", flush=True)


def table(rows: list[tuple[str, int]], size: str, limit: float, save: Path | None) -> bool:
    """Print every row, each from its own process; those that `save` holds are not measured again."""
    known: dict[tuple[str, str, int], Any] = {}
    for line in save.read_text(encoding="utf-8").splitlines() if save and save.exists() else ():
        record = json.loads(line)
        known[record["engine"], record["model"], record["level"]] = record
    print(f"{'engine':<11}{'episodes':>9}{'tokens/s':>10}{'ms/token':>10}" + "".join(f"{p:>9}" for p in PARTS))
    complete = True
    print(f"{size} model")
    for name, level in rows:
        record = known.get((name, size, level))
        if record is None:
            output = apart([f"{name}:{size}:{level}"], limit)
            if not output.startswith("{"):
                print(f"{name:<11}{level:>9}   not measured: {output}", flush=True)
                complete = False
                continue
            record = {"engine": name, "model": size, "level": level, "load": os.getloadavg()[0], **json.loads(output)}
            if save:
                with save.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        show(name, level, record)
    return complete


def apart(arguments: list[str], limit: float) -> str:
    """What this script prints last with `--row`, run in another process; else in one line why it printed nothing."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--row", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            process_group=0,
        )
        try:
            output = process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            return f"not done within {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it started
            process.wait()
        errors.seek(0)
        said = [line.strip() for line in (output if process.returncode == 0 else errors.read()).splitlines()]
    return next((line for line in reversed(said) if line), f"ended with status {process.returncode}")


@torch.no_grad()
async def mismatch(name: str) -> list[str]:
    """Log-probabilities of sampled tokens: the sampler's own against the learner's forward over the whole ledger."""
    kind, dtype = name.split("-")
    with model_folder("tiny", scale=8.0) as folder:
        spec = folder if kind == "hf" else f"vllm:{folder}"
        engine, _ = await open_engine(spec, slots=64, max_len=MAX_TOKENS + 1, dtype=dtype)
        prompts = [[(7 * i + 3 * j) % 256 + 2 for j in range(20 + i % 40)] for i in range(64)]
        try:
            made = await asyncio.gather(*(engine.generate(p, Sampling(64, seed=i)) for i, p in enumerate(prompts)))
        finally:
            await engine.close()
    lines = []
    for learner in dict.fromkeys((dtype, "float32")):
        model = make_model("tiny", scale=8.0).to(getattr(torch, learner))
        differences = []
        for prompt, generation in zip(prompts, made, strict=True):
            ids = torch.tensor([prompt + generation.token_ids])
            table = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            own = table.gather(1, ids[0, len(prompt) :, None])[:, 0]
            differences.append(own - torch.tensor(generation.logprobs))
        d = torch.cat(differences)
        k3 = estimates(-d)["k3"].mean().item()  # of KL(sampler || learner)
        sizes = f"{len(d):>7}{k3:>11.1e}{d.abs().mean():>10.1e}{d.abs().max():>10.1e}"
        lines.append(f"{kind:<8}{dtype:<10}{learner:<10}{sizes}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 64 episodes, without server and peers")
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--engines", help=f"of {', '.join(NAMES)}, separated by commas")
    parser.add_argument("--levels", help="numbers of episodes at a time (default 1,8,64,256)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a row, start of the engine included")
    parser.add_argument("--save", type=Path, help="keep rows in this file; a row that is in it is not measured again")
    parser.add_argument("--mismatch", action="store_true", help="log-probabilities of sampler and learner instead")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # this process measures that one row
    options = parser.parse_args()
    if options.row:
        torch.set_num_threads(1)
        disable_progress_bar()
        name, *rest = options.row.split(":")
        work = measure_row(name, rest[0], int(rest[1])) if rest else mismatch(name)
        print(json.dumps(asyncio.run(work)), flush=True)
        return
    if options.mismatch:
        vllm = importlib.util.find_spec("vllm") is not None
        print(f"{'sampler':<18}{'learner':<10}{'tokens':>7}{'k3 KL':>11}{'mean|d|':>10}{'max|d|':>10}", flush=True)
        for kind in ["hf", *["vllm"] * vllm]:
            for dtype in ("float32", "bfloat16"):
                output = apart([f"{kind}-{dtype}"], options.limit)
                lines = json.loads(output) if output.startswith("[") else [f"{kind}-{dtype} not measured: {output}"]
                print("\n".join(lines), flush=True)
        return
    names = options.engines.split(",") if options.engines else ["hf", "vllm"] if options.quick else NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no engine {', '.join(sorted(unknown))}: {', '.join(NAMES)}")
    levels = options.levels or ("8,64" if options.quick else "1,8,64,256")
    rows = [(name, int(level)) for name in names for level in levels.split(",")]
    if not table(rows, options.model, options.limit, options.save):
        sys.exit(1)


if __name__ == "__main__":
    main()
