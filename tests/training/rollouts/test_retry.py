"""What is tried again, what is given up, and what ends a run."""

import pytest

from solostream.agent.trajectory import Dispatch, TokenRecord
from solostream.envs.types import Grading
from solostream.errors import SandboxError
from solostream.training.rollouts.request import RolloutRequest
from solostream.training.rollouts.retry import RetryPolicy

REQUEST = RolloutRequest("t", 0, Dispatch())


def ended(ending, failure=None):
    record = TokenRecord()
    record.add_observation("user", [1, 2], "?")
    record.add_action([3], [-0.5], [0], "!")
    return record.close("t", 0.0, ending, grading=Grading(failure=failure))


def policy(*endings, retries=2, patience=3):
    left = list(endings)

    async def play(request):
        return left.pop(0) if len(left) > 1 else left[0]

    return RetryPolicy(play, retries=retries, patience=patience)


async def test_an_episode_without_a_reward_is_dropped_at_once_and_never_ends_the_run():
    made = policy(ended("infra", "reward 'f' failed on task 't': KeyError: 'x'"))
    for _ in range(50):
        assert await made.run(REQUEST) is None
    assert made.counts == {"reward_failures": 50}


async def test_failed_infrastructure_is_tried_again_and_ends_the_run_in_the_end():
    made = policy(ended("infra"), ended("infra"), ended("answered"))
    assert (await made.run(REQUEST)).ending == "answered"
    assert made.counts["infra_failures"] == 2
    made = policy(ended("infra"))
    assert await made.run(REQUEST) is None
    assert await made.run(REQUEST) is None
    with pytest.raises(SandboxError, match="3 episodes in a row"):
        await made.run(REQUEST)
