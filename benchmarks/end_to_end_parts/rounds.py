"""Episodes played as TRL's own tool loop plays them: transformers' `generate` over all that have not ended, then every
tool call, then `generate` again over what goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from solostream.agent.engine import Generation, Sampling


class Rounds:
    """An engine: one `generate` a round, when every episode that goes on waits for it."""

    def __init__(self, tokenizer: Any) -> None:
        self.version = 0
        self.model: Any = None  # what samples, in eval mode or not: it has no dropout
        self.playing = 0  # episodes that have not ended
        self._tokenizer = tokenizer
        self._waiting: list[tuple[list[int], Sampling, asyncio.Future[Generation]]] = []

    async def generate(self, prompt_ids: Any, sampling: Sampling) -> Generation:
        """One turn, with what all others are waiting for. Its log-probabilities are not computed: TRL needs none."""
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(prompt_ids), sampling, future))
        self._go()
        return await future

    async def release(self, key: str) -> None:
        """An episode has ended: the others need not wait for it."""
        self.playing -= 1
        self._go()

    def _go(self) -> None:
        if self._waiting and len(self._waiting) == self.playing:
            batch, self._waiting = self._waiting, []
            turns = self._round([(ids, sampling) for ids, sampling, _ in batch])
            for (_, _, future), made in zip(batch, turns, strict=True):
                future.set_result(made)

    @torch.no_grad()
    def _round(self, batch: list[tuple[list[int], Sampling]]) -> list[Generation]:
        width = max(len(ids) for ids, _ in batch)
        pad = self._tokenizer.pad_token_id
        prompts = torch.tensor([[pad] * (width - len(ids)) + ids for ids, _ in batch])  # [episodes, width]
        real = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in batch])
        ends = {self._tokenizer.eos_token_id, *batch[0][1].stop_token_ids}
        out = self.model.generate(
            prompts,
            attention_mask=real,
            max_new_tokens=max(sampling.max_tokens for _, sampling in batch),
            do_sample=True,
            top_k=0,
            pad_token_id=pad,
            eos_token_id=sorted(ends),
            stop_strings=list(batch[0][1].stop) or None,
            tokenizer=self._tokenizer,
        )[:, width:]
        return [self._turn(row.tolist(), sampling, ends) for row, (_, sampling) in zip(out, batch, strict=True)]

    def _turn(self, row: list[int], sampling: Sampling, ends: set[int]) -> Generation:
        """What belongs to the episode of what the round has in its row."""
        while len(row) > 1 and row[-1] == self._tokenizer.pad_token_id:  # it ended before the round did
            row.pop()
        row = row[: sampling.max_tokens]
        stopped = row[-1] in ends or len(row) < sampling.max_tokens  # the second: by a string
        return Generation(row, [-1.0] * len(row), [0] * len(row), "stop" if stopped else "length")
