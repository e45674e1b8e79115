"""Engines side by side: multi-turn episodes with the real fork sandbox, and where the CPU's time goes.

Random weights write no code, so every turn's text is replaced by a call of fixed code on its way to the environment;
the engine's work is the same: ragged prompts, three turns of 20 tokens, an observation after the first two. Models are
in float32, on one thread; "tiny" has 0.4 M parameters, "small" 25 M (what a token costs outside the model does not
depend on its size, its share does). Every row runs in a process of its own, within --limit seconds.

ms/token is CPU time, of all processes together, per generated token; the shares are shares of it (on a busy machine
wall time would say how busy it is):
  model    the engine's steps: forward passes, sampling, its bookkeeping (vllm, server: all of vLLM's own processes)
  sandbox  the interpreters and their keeper, and what calling them costs in this process
  glue     everything else in this process: rollout, chat rendering, parsing, ledger, event loop, HTTP, vLLM's front end

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
import resource  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import types  # noqa: E402
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator  # noqa: E402
from contextlib import asynccontextmanager, contextmanager, suppress  # noqa: E402
from typing import Any  # noqa: E402

import httpx  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from agent.chat import Chat  # noqa: E402
from agent.engine import Engine, Sampling  # noqa: E402
from agent.hf import HFEngine  # noqa: E402
from agent.rollout import rollout  # noqa: E402
from agent.scripted import byte_tokenizer  # noqa: E402
from agent.spec import open_engine  # noqa: E402
from benchmarks.engine_peers import ContinuousBatching, GenerateInRounds  # noqa: E402
from envs import Task, ToolEnv  # noqa: E402
from sandbox import Sandbox, Session, open_sandbox  # noqa: E402
from training.losses.kl import estimates  # noqa: E402

TURN_TOKENS, MAX_TOKENS = 20, 400
CALL = "```python\nsum(i * i for i in range(1000))\n```\n"
SAMPLING = Sampling(TURN_TOKENS)
MODELS = {"tiny": (128, 2, 4), "small": (512, 8, 8)}  # hidden size, layers, heads
NAMES = ("hf", "vllm", "server", "continuous", "generate")
PEERS = ("continuous", "generate")  # slow on CPUs: one round of episodes is measured
Seconds = Callable[[], float]  # CPU seconds that the model has used so far


class Clocked:
    """A sandbox, or one of its sessions, that counts the CPU seconds its calls take in this process."""

    spent = 0.0

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def open(self) -> Session:
        return Clocked(await _clocked(self._inner.open()))

    async def run(self, code: str, *, timeout: float | None = None) -> Any:
        return await _clocked(self._inner.run(code, timeout=timeout))

    async def close(self) -> None:
        await _clocked(self._inner.close())


@types.coroutine
def _clocked(call: Awaitable[Any]) -> Generator[Any, None, Any]:
    """Awaits `call`; between the moments at which it waits, its thread works for the sandbox."""
    steps = call.__await__()
    while True:
        before = time.thread_time()
        try:
            waits_for = next(steps)
        except StopIteration as end:
            return end.value
        finally:
            Clocked.spent += time.thread_time() - before
        yield waits_for


def fork(**options: Any) -> Sandbox:
    return Clocked(open_sandbox("fork", **options))


class Caller(ToolEnv):
    """Whatever the policy says: two calls, then an answer."""

    stops = ()

    def complete(self, text: str) -> int | None:
        return None

    async def astep(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return await super().astep(CALL if len(self.trace) < 2 else "\\boxed{332833500}")


def step_clock(engine: HFEngine) -> Seconds:
    """CPU seconds inside an HF engine's steps."""
    spent, step = [0.0], engine._step

    def timed() -> Any:
        before = time.thread_time()
        try:
            return step()
        finally:
            spent[0] += time.thread_time() - before

    engine._step = timed  # type: ignore[method-assign]
    return lambda: spent[0]


def tree_s(root: int) -> float:
    """CPU seconds of a process and all its descendants, dead ones included."""
    total = 0.0
    process = psutil.Process(root)
    for p in (process, *process.children(recursive=True)):
        try:
            total += sum(p.cpu_times()[:4])  # user, system, and both of reaped children
        except psutil.Error:
            continue
    return total


def children_s() -> float:
    """CPU seconds of everything that this process has started."""
    gone = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(tree_s(p.pid) for p in psutil.Process().children()) + gone.ru_utime + gone.ru_stime


@asynccontextmanager
async def opened(name: str, folder: str, size: str, slots: int) -> AsyncIterator[tuple[Engine, Seconds, bool]]:
    """An engine, the clock of its model, and whether that model runs in this process."""
    engine: Engine
    if name == "generate":
        engine = rounds = GenerateInRounds(make_model(size), TURN_TOKENS)
        clock, inside = (lambda: rounds.cpu_s), True
    elif name == "continuous":
        engine = peer = ContinuousBatching(make_model(size), TURN_TOKENS, slots)
        clock, inside = peer.cpu_s, True
    elif name == "hf":
        engine, _ = await open_engine(folder, slots=slots, max_len=MAX_TOKENS + 1)
        assert isinstance(engine, HFEngine)
        clock, inside = step_clock(engine), True
    elif name == "vllm":
        engine, _ = await open_engine(f"vllm:{folder}", slots=slots, max_len=MAX_TOKENS + 1)
        (core,) = (p.pid for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline()))
        clock, inside = (lambda: tree_s(core)), False
    else:
        with server(folder, slots) as (url, process):
            while not await _healthy(url):
                if process.poll() is not None:
                    sys.exit(f"vLLM's server ended with status {process.returncode}")
                await asyncio.sleep(0.3)
            engine, _ = await open_engine(url)
            try:
                yield engine, lambda: tree_s(process.pid), False
            finally:
                await engine.close()
        return
    try:
        yield engine, clock, inside
    finally:
        await engine.close()


@contextmanager
def server(folder: str, slots: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = f"--host 127.0.0.1 --port {port} --max-model-len {MAX_TOKENS + 1} --max-num-seqs {slots}"
    options += (
        " --dtype float32 --disable-log-stats --logprobs-mode processed_logprobs --distributed-executor-backend uni"
    )
    if not torch.cuda.is_available():
        options += f" --enforce-eager --block-size 32 --no-enable-chunked-prefill --kv-cache-memory-bytes {256 << 20}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *options.split()]
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


async def _healthy(url: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{url}/health", timeout=5)).status_code == 200
    except httpx.HTTPError:
        return False


async def measure(engine: Engine, clock: Seconds, inside: bool, level: int, rounds: int) -> dict[str, float]:
    """`rounds` episodes in each of `level` environments at a time: what they took."""
    tasks = [Task(str(i), "Add up squares. " * (1 + i % 4), "332833500") for i in range(16)]
    envs = [Caller(tasks, sandbox=fork, system_prompt="", max_turns=4) for _ in range(level)]
    chat = Chat(byte_tokenizer())

    async def worker(index: int, episodes: int) -> int:
        tokens = 0
        for n in range(episodes):
            seed = index * 1000 + n
            done = await rollout(envs[index], engine, chat, sampling=SAMPLING, max_tokens=MAX_TOKENS, seed=seed)
            tokens += done.n_action_tokens
        return tokens

    def spent() -> tuple[float, ...]:
        return time.perf_counter(), time.process_time(), children_s(), clock(), Clocked.spent

    try:
        await asyncio.gather(*(worker(i, 1) for i in range(level)))  # sandboxes started, caches made
        before = spent()
        tokens = sum(await asyncio.gather(*(worker(i, rounds) for i in range(level))))
        wall, own, others, model, calls = (now - then for now, then in zip(spent(), before, strict=True))
    finally:
        for env in envs:
            await env.aclose()
    interpreters = others if inside else others - model
    glue = own - calls - (model if inside else 0.0)
    return {"tokens": tokens, "wall_s": wall, "model_s": model, "sandbox_s": interpreters + calls, "glue_s": glue}


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
    parts = [row[f"{part}_s"] for part in ("model", "sandbox", "glue")]
    shares = "".join(f"{part / sum(parts):>9.1%}" for part in parts)
    speed, cost = row["tokens"] / row["wall_s"], 1000 * sum(parts) / row["tokens"]
    print(f"{name:<11}{level:>9}{speed:>10.0f}{cost:>10.3f}{shares}   load {row['load']:.1f}", flush=True)


def table(rows: list[tuple[str, int]], size: str, limit: float, save: Path | None) -> bool:
    """Print every row, each from its own process; those that `save` holds are not measured again."""
    known: dict[tuple[str, str, int], Any] = {}
    for line in save.read_text().splitlines() if save and save.exists() else ():
        record = json.loads(line)
        known[record["engine"], record["model"], record["level"]] = record
    print(
        f"{'engine':<11}{'episodes':>9}{'tokens/s':>10}{'ms/token':>10}{'model':>9}{'sandbox':>9}{'glue':>9}",
        flush=True,
    )
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
    with tempfile.TemporaryFile("w+") as errors:
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
