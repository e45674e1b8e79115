"""reasoning-gym as data: what is learnt and what is held out, who grades, and what a mistake says."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from solostream.envs import data
from solostream.envs.rewards.builtin import correct
from solostream.envs.rewards.episode import Episode
from solostream.envs.rewards.grading import Rules
from solostream.envs.types import Step, Task
from solostream.errors import SandboxError, UserError
from solostream.evaluation.options import EvalOptions
from solostream.training import config as configuration
from solostream.training.run import setup

FOUND = importlib.util.find_spec("reasoning_gym")
pytestmark = pytest.mark.skipif(
    FOUND is None and not os.environ.get("CI"), reason="no reasoning-gym: pip install 'solostream[reasoning-gym]'"
)
# sessions see the packages of this Python's own prefix, and not those that a .pth file adds from elsewhere
seen_inside = pytest.mark.skipif(
    bool(FOUND) and not Path(str(FOUND.origin)).is_relative_to(sys.prefix), reason="installed outside this Python"
)


def graded(task: Task, answer: str | None) -> float:
    episode = Episode(task, (Step("", (), (), (), 0.0, "answered", answer),), answer, "answered", 4, Rules())
    return asyncio.run(correct(episode)).value


def made(path: str, side: str, n: int, **more: object) -> data.Tasks:
    return data.tasks({"load": path, "split": side, "limit": n, **more})


def test_kinds_come_by_weight_and_evenly() -> None:
    tasks = made("reasoning-gym:chain_sum=2,gcd,lcm", "train", 41)
    kinds = [task.meta["kind"] for task in tasks]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"chain_sum": 21, "gcd": 10, "lcm": 10}
    assert kinds[:8].count("chain_sum") == 4
    assert {task.source for task in tasks} == {f"reasoning-gym/{kind}" for kind in kinds}


def test_no_seed_puts_a_held_out_problem_into_training() -> None:
    small = {"config": {"gcd": {"max_value": 40}}}  # few enough to meet the same ones again
    held_out = {
        t.prompt for seed in (0, 1, 7) for t in made("reasoning-gym:gcd", "test", 150, seed=seed, options=small)
    }
    learnt = {t.prompt for seed in (0, 1, 7) for t in made("reasoning-gym:gcd", "train", 450, seed=seed, options=small)}
    assert len(held_out) > 160  # the seeds share many, and not all
    assert not held_out & learnt


def test_a_run_divides_them_and_an_evaluation_takes_the_held_out_ones() -> None:
    tree = {"path": "reasoning-gym:gcd,lcm", "test_path": "reasoning-gym:base_conversion", "train": 30, "test": 7}
    own = {"reasoning-gym": {"config": {"gcd": {"min_value": 500, "max_value": 999}}}}
    train, test = setup.problems(configuration.validate({"data": {**tree, **own}}))
    assert [len(train), len(test)] == [30, 7]
    assert {task.meta["kind"] for task in test} == {"base_conversion"}
    asked = [task.prompt for task in train if task.meta["kind"] == "gcd"]
    numbers = [
        int(word) for prompt in asked for word in prompt.replace(",", " ").replace(".", " ").split() if word.isdigit()
    ]
    assert len(numbers) == 30
    assert min(numbers) >= 500
    options = EvalOptions(
        "model", data="reasoning-gym:gcd", limit=5, data_options='{"config": {"gcd": {"max_value": 50}}}'
    )
    chosen = data.tasks(options.tasks() or {})
    assert len(chosen) == 5
    assert {t.prompt for t in chosen} <= {
        t.prompt for t in made("reasoning-gym:gcd", "test", 40, options={"config": {"gcd": {"max_value": 50}}})
    }


def test_a_plain_answer_has_the_verifiers_own_score() -> None:
    gcd = made("reasoning-gym:gcd", "test", 3)[1]
    assert graded(gcd, gcd.answer) == 1.0
    assert graded(gcd, str(int(gcd.answer) + 1)) == 0.0
    assert graded(gcd, None) == 0.0
    words = made("reasoning-gym:letter_counting", "test", 1)[0]
    assert graded(words, words.answer) == 1.0
    fraction = made("reasoning-gym:prime_factorization", "test", 1)[0]
    assert graded(fraction, "no idea") == 0.0  # its verifier raises on that


@seen_inside
def test_what_is_no_plain_answer_is_scored_in_the_sandbox(tmp_path: Path) -> None:
    target = tmp_path / "written"
    gcd = made("reasoning-gym:gcd", "test", 3)[1]
    # the library's rule for a text that holds the right one: its share of the characters
    assert graded(gcd, f"{gcd.answer} (I am sure)") == pytest.approx(len(gcd.answer) / (len(gcd.answer) + 12))
    countdown = made("reasoning-gym:countdown", "test", 1)[0]
    assert graded(countdown, countdown.answer) == 1.0  # an expression
    assert graded(countdown, f"(1 + {countdown.answer})") < 0.1
    # its verifier gives this text to eval: nothing of it reaches this machine
    assert graded(countdown, f"__import__('pathlib').Path({str(target)!r}).write_text('x')") < 0.1
    assert not target.exists()
    queens = made("reasoning-gym:n_queens", "test", 1)[0]
    assert graded(queens, queens.answer) == 1.0
    assert graded(queens, "[" * 50) < 0.1
    assert graded(countdown, countdown.answer) == 1.0  # and the session lives


@seen_inside
def test_the_hundredth_verdict_in_the_sandbox_is_as_right_as_the_first() -> None:
    """Each has a process of its own, and none is left behind: a session has 64 at one time."""
    tasks = made("reasoning-gym:countdown", "test", 100)
    right = [graded(task, f"({task.meta['row']['metadata']['expression']})") for task in tasks]
    assert right == [1.0] * 100


@seen_inside
def test_a_sandbox_that_cannot_judge_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from solostream.envs.rewards import reasoning_gym

    (task,) = made("reasoning-gym:countdown", "test", 1)
    answer = f"({task.meta['row']['metadata']['expression']})"
    broken = reasoning_gym._SETUP.replace("os.fork()", "os.open('/nowhere', 0)")
    monkeypatch.setattr(reasoning_gym, "_SETUP", broken)
    verifier = reasoning_gym.ReasoningGym()
    episode = Episode(task, (Step("", (), (), (), 0.0, "answered", answer),), answer, "answered", 4, Rules())
    with pytest.raises(SandboxError, match="the verifier's sandbox"):
        verifier(episode)
    monkeypatch.undo()
    assert verifier(episode).value == 1.0  # in a new session


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"path": "reasoning-gym:chain_som"}, "did you mean 'chain_sum'"),
        ({"path": "reasoning_gym:gcd"}, "did you mean 'reasoning-gym:gcd'"),
        ({"path": "reasoning-gym:"}, "needs its kinds"),
        ({"path": "reasoning-gym"}, "needs its kinds"),
        ({"path": "reasoning-gym:gcd=0"}, "weight of gcd"),
        ({"path": "reasoning-gym:gcd", "test_share": 0.1}, "data.test_share says nothing about it"),
        ({"path": "reasoning-gym:gcd", "layout": "trl"}, "data.layout says nothing about it"),
        ({"path": "reasoning-gym:gcd", "split": "dev"}, "the splits train and test"),
        ({"path": "reasoning-gym:gcd", "reasoning-gym": {"confg": {}}}, "did you mean 'config'"),
        (
            {"path": "reasoning-gym:gcd", "reasoning-gym": {"config": {"gcd": {"max_valu": 3}}}},
            "did you mean 'max_value'",
        ),
        ({"path": "reasoning-gym:gcd", "reasoning-gym": {"config": {"gcd": {"max_value": 0}}}}, "refuses"),
        ({"path": "reasoning-gym:gcd", "reasoning-gym": {"config": {"gcd": {"max_value": 3}}}}, "ask for fewer"),
        ({"path": "reasoning-gym:gcd", "reasoning-gim": {"config": {}}}, "reasoning-gim"),
    ],
)
def test_mistakes_are_one_line(tree: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as error:
        setup.problems(configuration.validate({"data": tree}))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
