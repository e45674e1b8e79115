"""Torch's threads of sampler and learner: half each while both work, all while one of them waits."""

import pytest
import torch

from solostream.training.rollouts.cores import Cores
from solostream.training.rollouts.learner_thread import LearnerThread


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield 5
    torch.set_num_threads(before)


@pytest.mark.parametrize(("mode", "each"), [("async", 2), ("lockstep", 2), ("sync", 5)])
async def test_who_works_alone_has_all_threads_and_gives_them_back(threads, mode, each):
    learner = LearnerThread()
    cores = Cores(learner.run, mode)

    async def of_both():
        return torch.get_num_threads(), await learner.run(torch.get_num_threads)

    await cores.share()
    assert await of_both() == (each, each)
    async with cores.alone():
        assert await of_both() == (threads, threads)
    assert await of_both() == (each, each)
    with pytest.raises(KeyError):
        async with cores.alone():
            raise KeyError
    assert await of_both() == (each, each)
    learner.close()
    cores.leave()
    assert torch.get_num_threads() == threads


async def test_one_thread_stays_one(threads):
    torch.set_num_threads(1)
    learner = LearnerThread()
    cores = Cores(learner.run, "async")
    await cores.share()
    async with cores.alone():
        assert await learner.run(torch.get_num_threads) == 1
    assert torch.get_num_threads() == 1
    learner.close()
