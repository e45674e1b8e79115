"""Engines side by side: multi-turn episodes with the real fork sandbox, and where the CPU's time goes.

Random weights write no code, so every turn's text is replaced by a call of fixed code on its way to the environment;
the engine's work is the same: ragged prompts, three turns of 20 tokens, an observation after the first two. Every row
runs in its own process, its model on one thread in float32. Shares are of all CPU seconds spent. model: the engine's
steps (for vllm and server the whole of vLLM's processes); sandbox: the interpreters and their keeper; glue: everything
else in this process (rollout, chat, environment, event loop, HTTP, an engine's front end).

    python benchmarks/engines.py [--quick] [--engines hf,vllm,server,continuous,generate]
    python benchmarks/engines.py --mismatch     # sampler against learner, float32 and bfloat16
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # not this folder: sandbox.py and envs.py in it are no packages

import argparse  # noqa: E402
import asyncio  # noqa: E402
import importlib.util  # noqa: E402
import itertools  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import AsyncIterator, Callable, Iterator  # noqa: E402
from contextlib import asynccontextmanager, contextmanager  # noqa: E402
from typing import Any  # noqa: E402

import httpx  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen3Config, Qwen3ForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from agent.chat import Chat  # noqa: E402
from agent.engine import Engine, Generation, Sampling  # noqa: E402
from agent.hf import HFEngine  # noqa: E402
from agent.rollout import rollout  # noqa: E402
from agent.scripted import byte_tokenizer  # noqa: E402
from agent.spec import open_engine  # noqa: E402
from envs import Task, ToolEnv  # noqa: E402
from training.losses.kl import estimates  # noqa: E402

TURN_TOKENS, MAX_TOKENS = 20, 400
CALL = "```python\nsum(i * i for i in range(1000))\n```\n"
SAMPLING = Sampling(TURN_TOKENS)
LEVELS = {"generate": (1, 8), "continuous": (1, 8, 64)}  # where 256 episodes would take minutes
Seconds = Callable[[], float]  # CPU seconds that the model has used so far


class Caller(ToolEnv):
    """Whatever the policy says: two calls, then an answer."""

    stops = ()

    def complete(self, text: str) -> int | None:
        return None

    async def astep(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return await super().astep(CALL if len(self.trace) < 2 else "\\boxed{332833500}")


class GenerateInRounds:
    """The peer: `transformers`' own `generate`, on whatever requests wait when the last round is over, left-padded."""

    def __init__(self, model: Any) -> None:
        self.version, self.cpu_s, self._model = 0, 0.0, model
        self._waiting: list[tuple[list[int], asyncio.Future[Generation]]] = []
        self._rounds: asyncio.Task[None] | None = None

    async def generate(self, prompt_ids: Any, sampling: Sampling) -> Generation:
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(prompt_ids), future))
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(0.002)  # let the episodes of one round gather
            batch, self._waiting = self._waiting, []
            made = await asyncio.to_thread(self._round, [ids for ids, _ in batch])
            for (_, future), ids in zip(batch, made, strict=True):
                future.set_result(Generation(ids, [-1.0] * len(ids), [0] * len(ids), "length"))
            await asyncio.sleep(0)

    @torch.no_grad()
    def _round(self, prompts: list[list[int]]) -> list[list[int]]:
        before = time.thread_time()
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=TURN_TOKENS, do_sample=True, top_k=0, pad_token_id=0
        )
        self.cpu_s += time.thread_time() - before
        return out[:, width:].tolist()

    async def release(self, key: str) -> None: ...

    async def load_weights(self, weights: Any, version: int) -> None:
        raise NotImplementedError("the benchmark does not train")

    async def close(self) -> None: ...


class ContinuousBatching:
    """The peer: `transformers`' own continuous batching with paged attention."""

    def __init__(self, model: Any, slots: int) -> None:
        self.version = 0
        config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=TURN_TOKENS, eos_token_id=-1, pad_token_id=0)
        blocks = {"num_blocks": max(64, slots * 2), "max_batch_tokens": 4096, "page_size": 256}
        self._manager = model.init_continuous_batching(
            config, continuous_batching_config=ContinuousBatchingConfig(**blocks, allow_block_sharing=False)
        )
        self._manager.start()
        self._ids = itertools.count()

    async def generate(self, prompt_ids: Any, sampling: Sampling) -> Generation:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = str(next(self._ids))
        self._manager.register_result_handler(name, future.set_result)
        self._manager.add_request(list(prompt_ids), request_id=name, max_new_tokens=sampling.max_tokens)
        result = await future
        if result.error:
            raise RuntimeError(result.error)
        ids = list(result.generated_tokens)
        return Generation(ids, [-1.0] * len(ids), [0] * len(ids), "length")

    def cpu_s(self) -> float:
        thread = self._manager._generation_thread.native_id
        return sum(t.user_time + t.system_time for t in psutil.Process().threads() if t.id == thread)

    async def release(self, key: str) -> None: ...

    async def load_weights(self, weights: Any, version: int) -> None:
        raise NotImplementedError("the benchmark does not train")

    async def close(self) -> None:
        self._manager.stop(block=True)


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
async def opened(name: str, folder: str, slots: int) -> AsyncIterator[tuple[Engine, Seconds, bool]]:
    """An engine, the clock of its model, and whether that model runs in this process."""
    engine: Engine
    if name == "generate":
        engine = rounds = GenerateInRounds(make_model())
        clock, inside = (lambda: rounds.cpu_s), True
    elif name == "continuous":
        engine = peer = ContinuousBatching(make_model(), slots)
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
                    sys.exit("vllm serve ended; run it by hand to see why")
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
    options += " --dtype float32 --logprobs-mode processed_logprobs --distributed-executor-backend uni"
    if not torch.cuda.is_available():
        options += f" --enforce-eager --block-size 32 --no-enable-chunked-prefill --kv-cache-memory-bytes {256 << 20}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *options.split()]
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _healthy(url: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{url}/health", timeout=5)).status_code == 200
    except httpx.HTTPError:
        return False


async def measure(
    engine: Engine, clock: Seconds, inside: bool, concurrency: int, rounds: int
) -> tuple[float, float, float, float]:
    """(generated tokens/s, CPU seconds of model, sandbox, glue): `rounds` episodes in each of many environments."""
    tasks = [Task(str(i), "Add up squares. " * (1 + i % 4), "332833500") for i in range(16)]
    envs = [Caller(tasks, system_prompt="", max_turns=4) for _ in range(concurrency)]
    chat = Chat(byte_tokenizer())

    async def worker(index: int, episodes: int) -> int:
        tokens = 0
        for n in range(episodes):
            seed = index * 1000 + n
            done = await rollout(envs[index], engine, chat, sampling=SAMPLING, max_tokens=MAX_TOKENS, seed=seed)
            tokens += done.n_action_tokens
        return tokens

    def spent() -> tuple[float, float, float, float]:
        return time.perf_counter(), time.process_time(), children_s(), clock()

    try:
        await asyncio.gather(*(worker(i, 1) for i in range(concurrency)))  # sandboxes started, caches made
        before = spent()
        tokens = sum(await asyncio.gather(*(worker(i, rounds) for i in range(concurrency))))
        wall, own, others, model = (now - then for now, then in zip(spent(), before, strict=True))
    finally:
        for env in envs:
            await env.aclose()
    if inside:
        return tokens / wall, model, others, max(own - model, 0.0)
    return tokens / wall, model, max(others - model, 0.0), own


def make_model(scale: float = 1.0) -> Any:
    """About 0.5 M parameters, never ending a turn by itself."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(
        **sizes, vocab_size=258, head_dim=32, intermediate_size=384, max_position_embeddings=512, eos_token_id=None
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


@contextmanager
def model_folder(scale: float = 1.0) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        make_model(scale).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        yield folder


async def row(name: str, levels: list[int], episodes: int) -> None:
    """Every level of one engine; vLLM starts once for all of them."""
    once = name in ("vllm", "server")
    with model_folder() as folder:
        for group in [levels] if once else [[level] for level in levels]:
            async with opened(name, folder, max(group)) as (engine, clock, inside):
                for level in group:
                    rate, *parts = await measure(engine, clock, inside, level, max(1, min(8, episodes // level)))
                    shares = "".join(f"{part / sum(parts):>9.1%}" for part in parts)
                    print(f"{name:<11}{level:>9}{rate:>10.0f}{shares}", flush=True)


@torch.no_grad()
async def mismatch(name: str) -> None:
    """Log-probabilities of sampled tokens: the sampler's own against the learner's forward over the whole ledger."""
    kind, dtype = name.split("-")
    with model_folder(scale=8.0) as folder:
        spec = folder if kind == "hf" else f"vllm:{folder}"
        engine, _ = await open_engine(spec, slots=64, max_len=MAX_TOKENS + 1, dtype=dtype)
        prompts = [[(7 * i + 3 * j) % 256 + 2 for j in range(20 + i % 40)] for i in range(64)]
        try:
            made = await asyncio.gather(*(engine.generate(p, Sampling(64, seed=i)) for i, p in enumerate(prompts)))
        finally:
            await engine.close()
    for learner in dict.fromkeys((dtype, "float32")):
        model = make_model(scale=8.0).to(getattr(torch, learner))
        differences = []
        for prompt, generation in zip(prompts, made, strict=True):
            ids = torch.tensor([prompt + generation.token_ids])
            table = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            own = table.gather(1, ids[0, len(prompt) :, None])[:, 0]
            differences.append(own - torch.tensor(generation.logprobs))
        d = torch.cat(differences)
        k3 = estimates(-d)["k3"].mean().item()  # of KL(sampler || learner)
        print(f"{kind:<8}{dtype:<10}{learner:<10}{len(d):>7}{k3:>11.1e}{d.abs().mean():>10.1e}{d.abs().max():>10.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 64 episodes, without the server")
    parser.add_argument("--engines", help="of hf, vllm, server, continuous, generate, separated by commas")
    parser.add_argument("--mismatch", action="store_true", help="log-probabilities of sampler and learner instead")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # this process measures that one row
    options = parser.parse_args()
    levels, episodes = ([8, 64], 64) if options.quick else ([1, 8, 64, 256], 256)
    if options.row:
        torch.set_num_threads(1)
        disable_progress_bar()
        name = options.row
        if options.mismatch:
            return asyncio.run(mismatch(name))
        return asyncio.run(row(name, [n for n in levels if n in LEVELS.get(name, levels)], episodes))
    vllm = importlib.util.find_spec("vllm") is not None
    if options.mismatch:
        names = [f"{kind}-{dtype}" for kind in ["hf", *["vllm"] * vllm] for dtype in ("float32", "bfloat16")]
        print(f"{'sampler':<18}{'learner':<10}{'tokens':>7}{'k3 KL':>11}{'mean|d|':>10}{'max|d|':>10}", flush=True)
    else:
        names = ["hf", *["vllm"] * vllm, *["server"] * (vllm and not options.quick), "continuous", "generate"]
        if options.engines:
            unknown = set(options.engines.split(",")) - {"hf", "vllm", "server", "continuous", "generate"}
            if unknown:
                parser.error(f"no engine {', '.join(sorted(unknown))}: hf, vllm, server, continuous, generate")
            names = options.engines.split(",")
        print(f"{'engine':<11}{'episodes':>9}{'tokens/s':>10}{'model':>9}{'sandbox':>9}{'glue':>9}", flush=True)
    flags = [f"--{flag}" for flag in ("quick", "mismatch") if getattr(options, flag)]
    failed = [
        name
        for name in names
        if subprocess.run(
            [sys.executable, __file__, *flags, "--row", name], env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode
    ]
    if failed:
        sys.exit(f"no numbers from {', '.join(failed)}: see above")
    return None


if __name__ == "__main__":
    main()
