"""What others have: transformers' `generate` and its continuous batching, as engines."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from solostream.agent.engine import Generation, Sampling


class GenerateInRounds:
    """The peer: `transformers`' own `generate`, on whatever requests wait when the last round is over, left-padded."""

    def __init__(self, model: Any, turn_tokens: int) -> None:
        self.version, self.cpu_s, self._model, self._turn_tokens = 0, 0.0, model, turn_tokens
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
            ids, attention_mask=mask, max_new_tokens=self._turn_tokens, do_sample=True, top_k=0, pad_token_id=0
        )
        self.cpu_s += time.thread_time() - before
        return out[:, width:].tolist()

    async def release(self, key: str) -> None: ...

    async def load_weights(self, weights: Any, version: int) -> None:
        raise NotImplementedError("the benchmark does not train")

    async def close(self) -> None: ...


class ContinuousBatching:
    """The peer: `transformers`' own continuous batching with paged attention."""

    def __init__(self, model: Any, turn_tokens: int, slots: int) -> None:
        self.version = 0
        config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=turn_tokens, eos_token_id=-1, pad_token_id=0)
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
