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
