"""Demonstrations for the cold start: mixed, imperfect tool use, so that there is something to improve.

A demonstration is the list of texts that the policy writes, turn by turn; running it through the real environment gives
a trajectory whose action mask is the supervised mask.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from solostream.envs.types import Task

Style = Literal["early", "late", "guess", "bug"]
STYLES: tuple[Style, ...] = get_args(Style)
RIGHT: frozenset[Style] = frozenset({"early", "late"})  # their code runs, and their answer is the problem's

FILLERS = (
    "Let me think about this step by step.",
    "The numbers are large, so I should be careful.",
    "First I look at what is asked.",
    "This can be worked out by hand, but it takes long.",
    "I could try to estimate the result.",
    "A short program settles it.",
)


def fence(code: str) -> str:
    """Code as the environment's default syntax has it."""
    return f"```python\n{code}\n```\n"


def boxed(answer: object) -> str:
    """An answer as the default answer style has it."""
    return f"\\boxed{{{answer}}}"


def demonstration(task: Task, style: Style, rng: random.Random) -> list[str]:
    """The turns of one episode of `task` in `style`; `task.meta["code"]` is the reference solution.

    early: code at once. late: two to four sentences first. guess: no code, the answer as if it were known (what a
    policy without tools can learn of it is measured). bug: the code misses its last character; the next turn tries
    again, or answers wrong.
    """
    code = str(task.meta["code"])
    match style:
        case "early":
            return [fence(code), boxed(task.answer)]
        case "late":
            return [" ".join(rng.sample(FILLERS, rng.randint(2, 4))) + "\n" + fence(code), boxed(task.answer)]
        case "guess":
            filler = rng.choice(FILLERS) + "\n" if rng.random() < 0.5 else ""
            return [filler + boxed(task.answer)]
        case "bug":
            second = [fence(code), boxed(task.answer)] if rng.random() < 0.5 else [boxed(_wrong(task, rng))]
            return [fence(code[:-1]), *second]


def _wrong(task: Task, rng: random.Random) -> str:
    """A number with as many digits as the answer."""
    digits = len(task.answer)
    while True:
        guess = str(rng.randint(10 ** (digits - 1), 10**digits - 1))
        if guess != task.answer:
            return guess


def draw_styles(n: int, mix: Mapping[Style, float], rng: random.Random) -> list[Style]:
    """`n` styles with the probabilities of `mix`."""
    names: Sequence[Style] = [name for name in STYLES if mix.get(name, 0) > 0]
    return rng.choices(names, [mix[name] for name in names], k=n)
