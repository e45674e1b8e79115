"""EAD: the schedule by hand, an engine that is really asked at its temperatures, and stops that two pieces share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from dice import DiceEngine

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Generation, Sampling
from solostream.agent.engines.hf import HFEngine
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.agent.exploration.annealing import EAD, Annealed, temperature
from solostream.agent.tokenization import encode
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task

TEXT = "```python\nprint(6 * 7)\n``` and more"


def test_the_schedule() -> None:
    assert temperature(0, 1.2, 0.1, 400) == pytest.approx(1.2)
    assert temperature(40, 1.2, 0.1, 400) == pytest.approx(2.2 - math.exp(0.1))
    assert temperature(300, 1.2, 0.1, 400) == pytest.approx(0.1)  # 2.2 − e^0.75 = 0.083 is below the coolest
    assert temperature(250, 1.2, 0.1, 400) == pytest.approx(2.2 - math.exp(0.625))


class Reciting(DiceEngine):
    """Goes on with one text from wherever it is asked, in pieces of the size that is asked for; it knows no stops."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.requests.append(sampling)
        said = encode(self.tokenizer, TEXT)
        begun = next((n for n in range(len(said), 0, -1) if list(prompt_ids[-n:]) == said[:n]), 0)
        ids = said[begun : begun + sampling.max_tokens]
        return Generation(ids, [-0.25] * len(ids), [3] * len(ids), "length" if ids else "stop")


async def test_a_turn_is_asked_for_in_pieces_that_cool_down() -> None:
    engine = Reciting(lambda text: [])
    cooling = Annealed(engine, byte_tokenizer(), 1.5, 0.2, 10.0, 8)
    got = await cooling.generate([1, 2], Sampling(30, temperature=0.5, seed=7))
    assert got.finish == "length"
    assert len(got.token_ids) == len(got.logprobs) == len(got.versions) == 30
    assert [one.max_tokens for one in engine.requests] == [8, 8, 8, 6]
    heat = [max(2.5 - math.exp(t / 10), 0.2) * 0.5 for t in (0, 8, 16, 24)]
    assert [one.temperature for one in engine.requests] == pytest.approx(heat)
    assert [one.seed for one in engine.requests] == [7, 15, 23, 31]


@pytest.mark.parametrize("piece", [1, 2, 5, 8, 64])
async def test_a_stop_string_ends_the_turn_wherever_the_pieces_are_cut(piece: int) -> None:
    engine = Reciting(lambda text: [])
    cooling = Annealed(engine, byte_tokenizer(), 1.2, 0.1, 400.0, piece)
    got = await cooling.generate([1, 2], Sampling(60, seed=1, stop=("\n```",)))
    assert byte_tokenizer().decode(got.token_ids) == TEXT.removesuffix(" and more")
    assert got.finish == "stop"


async def test_an_annealed_episode_is_an_episode() -> None:
    env = ToolEnv([Task("t", "Q?", "42")], max_turns=3)
    turns = iter(["```python\nprint(6 * 7)\n```", "It is \\boxed{42}."])
    engine = DiceEngine(lambda text: [(next(turns), 0.5)])
    played = await EAD(piece=200)(
        env, engine, Chat(engine.tokenizer), sampling=Sampling(200), max_tokens=2000, task_id="t", seed=3, retries=0
    )
    await env.aclose()
    assert (played.reward, played.n_calls, played.ending) == (1.0, 1, "answered")
    assert [one.temperature for one in engine.requests] == pytest.approx([1.2, 1.2])  # each turn begins hot


async def test_a_real_engine_samples_and_tells_each_piece_at_its_own_temperature(
    make_model: Any, tokenizer: Any, reference: Any
) -> None:
    """And so its beginning is more various than its end: 24 draws of eight tokens from one prompt."""
    model = make_model()
    engine = HFEngine(model, tokenizer, slots=24)
    cooling = Annealed(engine, tokenizer, 2.0, 0.2, 4.0, 4)
    prompt = list(range(20, 40))
    drawn = await asyncio.gather(*(cooling.generate(prompt, Sampling(8, seed=100 * i, key=str(i))) for i in range(24)))
    heat = [2.0] * 4 + [3 - math.exp(1)] * 4
    for one in drawn[:6]:
        for i, (token, logprob) in enumerate(zip(one.token_ids, one.logprobs, strict=True)):
            told = reference[0](model, [*prompt, *one.token_ids], heat[i])[len(prompt) + i - 1, token].item()
            assert logprob == pytest.approx(told, abs=1e-4)
    first, last = ([one.logprobs[i] for one in drawn if len(one.logprobs) == 8] for i in (0, 7))
    assert -np.mean(first) > -np.mean(last) + 1  # nats
    await engine.close()


class Thermometer(DiceEngine):
    """Says nothing that matters; it is asked for the temperature of each token."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        n = sampling.max_tokens
        self.requests += [sampling] * n
        return Generation([5] * n, [-1.0] * n, [0] * n, "length")


def solved(temperatures: Sequence[float], tries: int = 8) -> float:
    """pass@8 of forty tokens: the first chooses among eight ways, of which the policy likes a wrong one (logits 4, 1
    for the right one, 0); the others have to be written out as they are, each right with odds of 32."""
    first, *rest = temperatures
    right = np.exp(1 / first) / (np.exp(4 / first) + np.exp(1 / first) + 6)
    for heat in rest:
        odds = 32 ** (1 / heat)
        right *= odds / (1 + odds)
    return float(1 - (1 - right) ** tries)


async def test_hot_at_first_and_cool_at_last_solves_more_than_any_one_temperature() -> None:
    engine = Thermometer(lambda text: [])
    await Annealed(engine, byte_tokenizer(), 1.2, 0.1, 10.0, 1).generate([1, 2], Sampling(40))
    asked = [one.temperature for one in engine.requests]
    best = max(solved([heat] * 40) for heat in np.arange(0.1, 2.01, 0.05))
    assert solved(asked) > 2 * best
    assert solved(asked[::-1]) < 0.1 * best  # the order is what counts
