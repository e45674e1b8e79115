"""`solostream grade GOLD ANSWER`: is the answer right, and by which rule."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from solostream.envs.rewards.grading import Rules
from solostream.envs.rewards.grading import grade as verdict_on
from solostream.errors import UserError

Strictness = Literal["lenient", "strict", "ignore"]


def grade(
    gold: Annotated[str, tyro.conf.Positional],
    answer: Annotated[str, tyro.conf.Positional],
    /,
    *,
    tolerance: float = 0.0,
    units: Strictness = "lenient",
    percent: Strictness = "lenient",
    also: tuple[str, ...] = (),
) -> int:
    """Whether an answer is right, as a training would grade it, and the rule that decided. Exit code 0: right.

    A text that begins with a minus sign comes after `--`: solostream grade -- -5 "$-5$".

    Args:
        gold: The accepted answer.
        answer: What was answered.
        tolerance: Relative; 0 is exact.
        units: lenient: a missing unit is no fault, a different one is. strict: both have it. ignore: any will do.
        percent: lenient: 28% is 28 and 0.28. strict: it is 0.28. ignore: it is 28.
        also: Other accepted answers.
    """
    if not gold.strip():
        raise UserError("the accepted answer is empty; write it in quotes")
    found = verdict_on((gold, *also), answer, Rules(tolerance, units, percent))
    print(f"{'right' if found.equal else 'wrong'}: {found.rule}")
    return 0 if found.equal else 1
