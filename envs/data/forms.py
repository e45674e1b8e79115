"""Other forms of a problem: with a part of its solution, with choices, with a gap to fill, without the tool.

A form is named beside its problem, `ID~hint=0.5`, so that it is a task like any other wherever a task id goes: it has a
value of its own in a tracker, a line in the log, and a resumed run knows it. Its source is the problem's with the form
behind it (`gsm8k~hint=0.5`): an accuracy by source does not mix what is easier with what is not. Nothing is made before
it is asked for.

`hint=ω` puts the first share ω of the reference solution into the prompt (GHPO, arXiv 2507.10628; by characters, as its
authors cut, and back to the last white space). `choice=n` is a multiple choice of n and `cloze` shows the answer with
most of its digits blank (Cog-DRIFT, arXiv 2604.04767). Departure: there a language model writes the choices; here data
may bring them (`meta["choices"]`), else they are variations of a number, or the answers of other problems of the
source. `direct` asks for an answer without the tool, and the environment runs no call (A²FM's instant mode).
Data may bring any form ready-made: `meta["forms"] = {"cloze": {"prompt": …, "answer": …}}`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from solostream.envs.types import Task
from solostream.errors import UserError

MARK = "~"
LETTERS = "ABCDEFGHIJ"
SOLUTIONS = ("solution", "code")  # where a task's `meta`, or its row, has a worked solution


def base_of(task_id: str) -> str:
    """The problem that a form is of; of a task id without a form the id itself."""
    return task_id.rpartition(MARK)[0] or task_id


def make_form(task: Task, form: str, pool: Sequence[Task] = ()) -> Task | None:
    """`task` in another form; None where it has no such form. pool: whose answers may be wrong choices.

    Raises UserError for a form that there is not.
    """
    name, _, argument = form.partition("=")
    if name not in _FORMS:
        raise UserError(f"unknown form '{form}' of task {task.id}; there are: hint=SHARE, choice=N, cloze, direct")
    brought = task.meta.get("forms", {})
    if form in brought or name in brought:
        made: Task | None = replace(task, **brought.get(form, brought.get(name)))
    else:
        made = _FORMS[name](task, argument, pool)
    named = f"{task.id}{MARK}{form}", f"{task.source}{MARK}{form}"
    return made and replace(made, id=named[0], source=named[1])


def find(task_id: str, by_id: Mapping[str, Task], pool: Sequence[Task]) -> Task | None:
    """The task or form of that id; None where there is none."""
    if MARK not in task_id or task_id in by_id:
        return by_id.get(task_id)
    base, _, form = task_id.rpartition(MARK)
    return make_form(by_id[base], form, pool) if base in by_id else None


def solution_of(task: Task) -> str | None:
    """The worked solution that its data has, beyond the bare answer."""
    row = task.meta.get("row")
    for place in (task.meta, row if isinstance(row, Mapping) else {}):
        for name in (*SOLUTIONS, "answer"):
            text = place.get(name)
            if isinstance(text, str) and text.strip() and text.strip() not in task.accepted:
                return text
    return None


def _hint(task: Task, argument: str, pool: Sequence[Task]) -> Task | None:
    share, solution = _number(argument, 0.0, 1.0), solution_of(task)
    if solution is None:
        return None
    part = solution[: round(len(solution) * share)]
    if len(part) < len(solution) and not solution[len(part)].isspace():  # no half words
        part = part[: max(part.rfind(" "), part.rfind("\n"), 0)]
    if not part.strip():
        return None
    return replace(task, prompt=f"{task.prompt}\n\nA solution of this problem begins like this:\n{part.rstrip()}")


def _choice(task: Task, argument: str, pool: Sequence[Task]) -> Task | None:
    n = int(_number(argument, 2, len(LETTERS)))
    if task.answer.strip().strip("()").upper() in LETTERS:  # it is a multiple choice already
        return None
    rng = random.Random(f"{task.id}/{n}")  # the same choices whenever they are asked for
    wrong = _distractors(task, n - 1, pool, rng)
    if wrong is None:
        return None
    options = [*wrong, task.answer]
    rng.shuffle(options)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    letter = LETTERS[options.index(task.answer)]
    meta = {**task.meta, "answers": (letter, *task.accepted)}
    prompt = f"{task.prompt}\n\nOne of these is right; answer with its letter:\n{listed}"
    return replace(task, prompt=prompt, answer=letter, meta=meta)


def _cloze(task: Task, argument: str, pool: Sequence[Task]) -> Task | None:
    """Seven in ten of the digits are blank (the paper: 50 to 80 %), and at least one is shown."""
    places = [i for i, character in enumerate(task.answer) if character.isdigit()]
    if len(places) < 2:
        return None
    rng = random.Random(f"{task.id}/cloze")
    blank = set(rng.sample(places, min(max(round(0.7 * len(places)), 1), len(places) - 1)))
    mask = "".join("_" if i in blank else character for i, character in enumerate(task.answer))
    return replace(task, prompt=f"{task.prompt}\n\nThe answer has this form, a digit for each blank: {mask}")


def _direct(task: Task, argument: str, pool: Sequence[Task]) -> Task | None:
    prompt = f"{task.prompt}\n\nAnswer at once; there is no tool for this problem."
    return replace(task, prompt=prompt, meta={**task.meta, "no_tool": True})


_FORMS: dict[str, Callable[[Task, str, Sequence[Task]], Task | None]] = {
    "hint": _hint,
    "choice": _choice,
    "cloze": _cloze,
    "direct": _direct,
}


def _distractors(task: Task, n: int, pool: Sequence[Task], rng: random.Random) -> list[str] | None:
    """n different wrong answers, or None."""
    given = [str(choice) for choice in task.meta.get("choices", ())]
    if not given and re.fullmatch(r"-?\d{1,15}", task.answer):
        number = int(task.answer)
        near = {number + step for step in range(-n, n + 1)} | {-number, 2 * number, 10 * number, number // 2}
        given = [str(x) for x in sorted(near)]
    elif not given:
        given = sorted({other.answer for other in pool if other.source == task.source})
    wrong = [choice for choice in dict.fromkeys(given) if choice not in task.accepted]
    return rng.sample(wrong, n) if len(wrong) >= n else None


def _number(argument: str, least: float, most: float) -> float:
    try:
        number = float(argument)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise UserError(f"a form wants a number from {least:g} to {most:g}, not '{argument}'")
    return number
