"""Turns that are begun for the policy: what it can guess without the tool."""

from collections.abc import Sequence

import pytest

from solostream.agent.engine import Generation, Sampling, check_prompt
from solostream.training.rollouts.validation import DirectAnswer

OPENING = [7, 8, 9]


class Engine:
    """Says 100, 101, … to the end of its room, which it takes as strictly as a real one."""

    version = 5

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        check_prompt(prompt_ids, 20)
        assert len(prompt_ids) + sampling.max_tokens <= 20
        ids = [100 + i for i in range(sampling.max_tokens)]
        return Generation(ids, [-0.5] * len(ids), [4] * len(ids), "length")


@pytest.mark.parametrize("room", range(1, 7))
async def test_the_opening_is_part_of_the_turn_and_of_its_room(room: int) -> None:
    engine = DirectAnswer(Engine(), OPENING)
    prompt = list(range(20 - room))
    said = await engine.generate(prompt, Sampling(max_tokens=room))
    assert said.token_ids == [7, 8, 9, 100, 101, 102][:room]
    assert said.logprobs == [0.0, 0.0, 0.0, -0.5, -0.5, -0.5][:room]
    assert said.versions == [5, 5, 5, 4, 4, 4][:room]
    assert said.finish == "length"


class Hasty(Engine):
    """Gives every request up after two tokens, but for the last of its room."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        whole = await super().generate(prompt_ids, sampling)
        if len(whole.token_ids) <= 2:
            return whole
        return Generation(whole.token_ids[:2], [-0.5] * 2, [4] * 2, "abort")


async def test_a_turn_that_its_engine_gave_up_in_the_middle_is_opened_once() -> None:
    engine = DirectAnswer(Hasty(), OPENING)
    for turn, key in enumerate(("one", "other", "one")):  # two episodes, and a second turn of one of them
        context, said, room = [1, 2, turn], [], 8
        while len(said) < room:
            sampling = Sampling(max_tokens=room - len(said), key=key)
            said += (await engine.generate(context + said, sampling)).token_ids
        assert said == [7, 8, 9, 100, 101, 100, 101, 100]
