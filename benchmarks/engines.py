"""Engines side by side: multi-turn episodes with a real sandbox, and where the time goes.

Random weights write no code, so every turn's text is replaced by a call of fixed code on its way to the environment;
the engine's work is the same: ragged prompts, three turns of 20 tokens, an observation after the first two. Shares:
model: inside the engine's steps (known for the hf engine alone); glue: this process' other CPU time (rollout, chat,
environment, event loop, an engine's front end); the rest is waiting, for the sandbox or a model in another process.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # not this folder: sandbox.py and envs.py in it are no packages

import argparse  # noqa: E402
import asyncio  # noqa: E402
import importlib.util  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from agent.chat import Chat  # noqa: E402
from agent.engine import Engine, Generation, Sampling  # noqa: E402
from agent.hf import HFEngine  # noqa: E402
from agent.rollout import rollout  # noqa: E402
from agent.scripted import byte_tokenizer  # noqa: E402
from agent.spec import open_engine  # noqa: E402
from envs import Task, ToolEnv  # noqa: E402

TURN_TOKENS, MAX_TOKENS = 20, 400
CALL = "```python\nsum(i * i for i in range(1000))\n```\n"
SAMPLING = Sampling(TURN_TOKENS)


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
        self.version, self._model = 0, model
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
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=TURN_TOKENS, do_sample=True, top_k=0, pad_token_id=0
        )
        return out[:, width:].tolist()

    async def release(self, key: str) -> None: ...

    async def load_weights(self, weights: Any, version: int) -> None:
        raise NotImplementedError("the benchmark does not train")

    async def close(self) -> None: ...


class StepClock:
    """Adds up what an HF engine spends inside its steps: wall and CPU seconds."""

    def __init__(self, engine: HFEngine) -> None:
        self.wall = self.cpu = 0.0
        step = engine._step

        def timed() -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return step()
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu

        engine._step = timed  # type: ignore[method-assign]


async def measure(engine: Engine, concurrency: int, rounds: int) -> tuple[float, float, float]:
    """(generated tokens/s, model share, glue share) over `rounds` episodes in each of `concurrency` environments."""
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

    try:
        await asyncio.gather(*(worker(i, 1) for i in range(concurrency)))  # sandboxes started, caches made
        clock = StepClock(engine) if isinstance(engine, HFEngine) else None
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = sum(await asyncio.gather(*(worker(i, rounds) for i in range(concurrency))))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        for env in envs:
            await env.aclose()
    inside = (clock.wall, clock.cpu) if clock else (0.0, 0.0)
    return tokens / wall, inside[0] / wall, max(cpu - inside[1], 0.0) / wall


def make_model() -> Any:
    """About 0.5 M parameters, never ending a turn by itself."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(
        **sizes, vocab_size=258, head_dim=32, intermediate_size=384, max_position_embeddings=512, eos_token_id=None
    )
    return Qwen3ForCausalLM(config).eval()


async def run(names: list[str], levels: list[int], episodes: int) -> None:
    print(
        f"{'engine':<10}{'episodes':>9}{'tokens/s':>10}{'x generate':>11}{'model':>8}{'glue':>7}{'waiting':>9}",
        flush=True,
    )
    peer: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model()
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        for name in names:
            for level in levels:
                engine: Engine
                if name == "generate":
                    engine = GenerateInRounds(model)
                else:
                    spec = folder if name == "hf" else f"vllm:{folder}"
                    engine, _ = await open_engine(spec, slots=level, max_len=MAX_TOKENS + 1)
                try:
                    rate, inside, glue = await measure(engine, level, max(1, min(8, episodes // level)))
                finally:
                    await engine.close()
                if name == "generate":
                    peer[level] = rate
                ratio = f"{rate / peer[level]:.1f}" if level in peer else "-"
                shares = f"{inside:>8.0%}" if name == "hf" else f"{'':>8}"
                waiting = max(0.0, 1 - inside - glue)
                print(f"{name:<10}{level:>9}{rate:>10.0f}{ratio:>11}{shares}{glue:>7.0%}{waiting:>9.0%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 64 episodes only, without vLLM")
    parser.add_argument("--engines", help="of generate, hf, vllm, separated by commas")
    options = parser.parse_args()
    vllm = [] if options.quick or importlib.util.find_spec("vllm") is None else ["vllm"]
    names = options.engines.split(",") if options.engines else ["generate", "hf", *vllm]
    asyncio.run(run(names, [8, 64], 64) if options.quick else run(names, [1, 8, 64, 256], 256))


if __name__ == "__main__":
    main()
