"""How rewards are called: on the loop, in threads, processes and batches; what fails is named, counted, no reward."""

import asyncio
import os
import threading
import time
import warnings

import pytest

from solostream.envs.rewards import Episode, RewardError, Rubric, Score, failures
from solostream.envs.types import Step, Task
from solostream.errors import UserError

seen = []  # what the functions below were called with, and where


def episode(task_id="t", answer="5", gold="5", meta=None):
    last = Step("So it is 5.", (), (), (), 0.0, "answered", answer)
    return Episode(Task(task_id, "2 + 3?", gold, meta=meta or {}), (last,), answer, "answered", 4)


async def on_the_loop(episode):
    seen.append(threading.current_thread())
    await asyncio.sleep(0)
    return 0.25


def in_a_thread(episode):
    seen.append(threading.current_thread())
    return Score(0.75, f"task {episode.task.id}")


def scaled(episode, *, factor: float = 1.0):
    return factor * float(episode.answer)


def pid(episode):
    return Score(0.5, str(os.getpid()))


def raises(episode):
    raise ZeroDivisionError("oh\nno")


def raises_on_b(episode):
    if episode.task.id == "b":
        raise KeyError("b")
    return 1.0


def hangs(episode):
    time.sleep(600)


def spins(episode):
    while True:
        pass


def exits(episode):
    os._exit(3)


async def hangs_on_the_loop(episode):
    await asyncio.sleep(600)


def returns_text(episode):
    return "good"


def not_a_number(episode):
    return float("nan")


def lengths(episodes):
    seen.append([e.task.id for e in episodes])
    return [len(e.task.id) / 10 for e in episodes]


def one_too_few(episodes):
    return [1.0] * (len(episodes) - 1)


class Counts:
    """A reward with a state and options."""

    def __init__(self, *, most: int) -> None:
        self.most, self.calls = most, 0

    async def __call__(self, episode):
        self.calls += 1
        return min(self.calls, self.most) / self.most


def scores(source, *episodes):
    async def all_of_them():
        rubric = Rubric(source)
        return await asyncio.gather(*(rubric.scores(e) for e in episodes or (episode(),)))

    return asyncio.run(all_of_them())


def one(source, of=None):
    (found,) = scores(source, of or episode())
    (score,) = found.values()
    return score


def test_async_rewards_run_on_the_loop_and_others_off_it():
    seen.clear()
    assert one("test_calls:on_the_loop").value == 0.25
    assert one("test_calls:in_a_thread", episode("t9")) == Score(0.75, "task t9")
    assert seen[0] is threading.main_thread()
    assert seen[1] is not threading.main_thread()


def test_options_of_functions_and_classes_are_checked():
    assert one({"test_calls:scaled": {"factor": 0.125}}).value == 0.625
    assert one({"test_calls:Counts": {"most": 4, "weight": 0.5}}).value == 0.25
    with pytest.raises(UserError, match=r"has no option 'factr'.*did you mean 'factor'"):
        Rubric({"test_calls:scaled": {"factr": 1}})
    with pytest.raises(UserError, match="needs its option 'most'"):
        Rubric("test_calls:Counts")
    with pytest.raises(UserError, match="'most' cannot be 'many'"):
        Rubric({"test_calls:Counts": {"most": "many"}})
    with pytest.raises(UserError, match="run is thread or process"):
        Rubric({"test_calls:scaled": {"run": "fiber"}})
    with pytest.raises(UserError, match="timeout_s must be above 0 and finite"):
        Rubric({"test_calls:scaled": {"timeout_s": float("nan")}})
    with pytest.raises(UserError, match="leave out run"):
        Rubric({"test_calls:on_the_loop": {"run": "process"}})
    with pytest.raises(UserError, match="weight must be a number"):
        Rubric({"test_calls:scaled": {"weight": "much"}})
    with pytest.raises(UserError, match="is a list"):
        Rubric("test_calls:seen")


def test_environments_share_a_reward_with_the_same_options():
    first, second = Rubric({"test_calls:Counts": {"most": 10}}), Rubric({"test_calls:Counts": {"most": 10}})

    async def both():
        return [(await rubric.scores(episode()))["test_calls:Counts"].value for rubric in (first, second, first)]

    assert asyncio.run(both()) == [0.1, 0.2, 0.3]


def test_a_process_of_its_own_that_serves_again():
    source = {"test_calls:pid": {"run": "process"}}
    rubric = Rubric(source)

    async def twice():
        return [(await rubric.scores(episode()))["test_calls:pid"] for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first.value == 0.5
    assert first.why == second.why != str(os.getpid())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("test_calls:raises", "reward 'test_calls:raises' failed on task 'x7': ZeroDivisionError: oh no"),
        ({"test_calls:hangs": {"timeout_s": 0.2}}, "failed on task 'x7': TimeoutError: no reward within 0.2 s"),
        ({"test_calls:hangs_on_the_loop": {"timeout_s": 0.2}}, "TimeoutError: no reward within 0.2 s"),
        ({"test_calls:spins": {"timeout_s": 3, "run": "process"}}, "TimeoutError: no reward within 3 s"),
        ({"test_calls:exits": {"run": "process"}}, r"its process died \(exit code 3\)"),
        ({"test_calls:raises": {"run": "process"}}, "ZeroDivisionError: oh no"),
        ("test_calls:returns_text", "could not convert string to float: 'good'"),
        ("test_calls:not_a_number", r"returned nan; rewards must lie in \[0, 1\]"),
        ({"test_calls:one_too_few": {"batch": 4}}, "0 rewards for 1 episodes"),
    ],
)
def test_what_fails_is_one_line_counted_and_no_reward(source, said):
    name = source if isinstance(source, str) else next(iter(source))
    before = failures[name].total() if name in failures else 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(RewardError, match=said) as error:
            scores(source, episode("x7"))
    assert failures[name].total() == before + 1
    assert "\n" not in str(error.value)
    assert [str(w.message) for w in told] == [str(error.value)]


def test_after_ten_failures_they_are_only_counted():
    failures.pop("test_calls:raises", None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for n in range(13):
            with pytest.raises(RewardError):
                scores("test_calls:raises", episode(f"t{n}"))
    assert failures["test_calls:raises"]["ZeroDivisionError"] == 13
    assert len(told) == 10
    assert "further ones are only counted" in str(told[-1].message)


def test_a_batch_is_one_call_for_many_episodes():
    seen.clear()
    episodes = [episode("t" * n) for n in (1, 2, 3, 4, 5)]
    found = scores({"test_calls:lengths": {"batch": 3, "batch_wait_s": 0.01}}, *episodes)
    assert [score["test_calls:lengths"].value for score in found] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert seen == [["t", "tt", "ttt"], ["tttt", "ttttt"]]


def test_the_episodes_of_several_environments_share_a_batch():
    seen.clear()

    async def two():
        rubrics = [Rubric({"test_calls:lengths": {"batch": 2, "batch_wait_s": 30}}) for _ in range(2)]
        return await asyncio.gather(*(r.scores(episode("ab" * n)) for n, r in enumerate(rubrics, 1)))

    assert [s["test_calls:lengths"].value for s in asyncio.run(two())] == [0.2, 0.4]
    assert seen == [["ab", "abab"]]


def test_a_cancelled_episode_leaves_its_batch_to_the_others():
    async def three():
        rubric = Rubric({"test_calls:lengths": {"batch": 3, "batch_wait_s": 30}})
        first, second = (asyncio.create_task(rubric.scores(episode(name))) for name in ("a", "bb"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        return await asyncio.gather(second, rubric.scores(episode("ccc")))

    assert [s["test_calls:lengths"].value for s in asyncio.run(three())] == [0.2, 0.3]


def test_the_loop_goes_on_while_a_reward_thinks():
    async def both():
        rubric = Rubric({"test_calls:hangs": {"timeout_s": 1}})
        slow = asyncio.create_task(rubric.scores(episode()))
        ticks = 0
        while not slow.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(RewardError):
            await slow
        return ticks

    with pytest.warns(RuntimeWarning):
        ticks = asyncio.run(both())
    assert ticks > 3
