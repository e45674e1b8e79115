"""The rounds in which `benchmarks/end_to_end.py` plays TRL's episodes: each one gets what it would get alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import torch

from benchmarks.end_to_end_parts.rounds import Rounds
from solostream.agent.engine import Generation, Sampling
from tests import tiny_models

PAD, END = 0, 57
PROMPTS = [[5, 9, 13], [7, 3, 11, 19, 23, 2, 8], [40, 41]]
LIMITS = [6, 4, 9]


def decided() -> torch.nn.Module:
    """A model that samples its likeliest token, whatever the seed."""
    model = tiny_models.model()
    forward = model.forward

    def sharp(*arguments, **options):
        found = forward(*arguments, **options)
        found.logits = found.logits * 1e4
        return found

    model.forward = sharp
    return model


@torch.no_grad()
def alone(model: torch.nn.Module, prompt: list[int], limit: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + limit and (len(ids) == len(prompt) or ids[-1] != END):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_round_gives_each_episode_what_it_would_get_alone() -> None:
    model = decided()
    rounds = Rounds(SimpleNamespace(pad_token_id=PAD, eos_token_id=END))
    rounds.model, rounds.playing = model, len(PROMPTS)

    async def play() -> list[Generation]:
        first = asyncio.gather(
            *(rounds.generate(p, Sampling(n, seed=3)) for p, n in zip(PROMPTS[:2], LIMITS[:2], strict=True))
        )
        await asyncio.sleep(0)
        assert not first.done()  # the third episode has not asked yet
        last = await rounds.generate(PROMPTS[2], Sampling(LIMITS[2]))
        return [*await first, last]

    turns = asyncio.run(play())
    expected = [alone(model, p, n) for p, n in zip(PROMPTS, LIMITS, strict=True)]
    assert [turn.token_ids for turn in turns] == expected
    assert {row[-1] == END for row in expected} == {True, False}  # some end, some are cut
    assert [turn.finish for turn in turns] == ["stop" if row[-1] == END else "length" for row in expected]


def test_a_stop_token_ends_a_turn_also_at_its_limit() -> None:
    model = decided()
    row = alone(model, PROMPTS[2], 4)
    rounds = Rounds(SimpleNamespace(pad_token_id=PAD, eos_token_id=END))
    rounds.model, rounds.playing = model, 2

    async def play() -> list[Generation]:
        stop = (row[3],)
        return await asyncio.gather(
            rounds.generate(PROMPTS[2], Sampling(4, stop_token_ids=stop)),
            rounds.generate(PROMPTS[2], Sampling(3, stop_token_ids=stop)),
        )

    ended, cut = asyncio.run(play())
    assert row.index(row[3]) == 3  # it is the fourth token that ends the first turn
    assert (ended.token_ids, ended.finish) == (row, "stop")
    assert (cut.token_ids, cut.finish) == (row[:3], "length")


def test_who_has_ended_is_not_waited_for() -> None:
    model = decided()
    rounds = Rounds(SimpleNamespace(pad_token_id=PAD, eos_token_id=END))
    rounds.model, rounds.playing = model, 2

    async def play() -> Generation:
        turn = asyncio.ensure_future(rounds.generate(PROMPTS[0], Sampling(3)))
        await asyncio.sleep(0)
        assert not turn.done()
        await rounds.release("other")
        return await turn

    assert asyncio.run(play()).token_ids == alone(model, PROMPTS[0], 3)
