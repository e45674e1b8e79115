"""A policy that is a table: for every turn some texts and their probabilities, drawn by the request's own seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from solostream.agent.engine import Generation, Sampling
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.agent.tokenization import decode, encode

Table = Callable[[str], Sequence[tuple[str, float]]]


class DiceEngine:
    """The first token of a turn tells which text it is and has its probability; the others are certain."""

    unit = "tokens"

    def __init__(self, table: Table, temperature: bool = False) -> None:
        self.tokenizer, self.version = byte_tokenizer(), 0
        self._table, self._temperature = table, temperature
        self.requests: list[Sampling] = []
        self.released: list[str] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.requests.append(sampling)
        choices = self._table(decode(self.tokenizer, list(prompt_ids)))
        text, chance = self.draw(choices, sampling.seed or 0)
        ids = [*encode(self.tokenizer, text), self.tokenizer.eos_token_id]
        logprobs = [math.log(chance), *[0.0] * (len(ids) - 1)]
        room = sampling.max_tokens
        finish = "stop" if len(ids) <= room else "length"
        return Generation(ids[:room], logprobs[:room], [self.version] * min(len(ids), room), finish)

    @staticmethod
    def draw(choices: Sequence[tuple[str, float]], seed: int) -> tuple[str, float]:
        left = random.Random(seed).random()
        for choice in choices:
            left -= choice[1]
            if left < 0:
                break
        return choice

    async def release(self, key: str) -> None:
        self.released.append(key)

    async def load_weights(self, weights, version: int) -> None:
        self.version = version

    async def close(self) -> None:
        pass
