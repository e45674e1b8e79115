"""Small functions to write, with tests that the policy does not see. Of the kind "data": `functions:all`.

A function is a chain of steps, each a phrase and a line of code; two examples are told, eight other calls test it (the
reward `code_tests`, by `meta["function"]` and `meta["cases"]`). The task's answer is a right program.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from solostream.envs.data.generators import Side
from solostream.envs.data.generators.sides import drawn, kinds_of
from solostream.envs.types import Task

SHOWN, HIDDEN = 2, 8
LEAST_RESULTS = 4  # of the hidden calls, that are different
Step = tuple[str, str]  # what it does, in words and in Python; {k} is a small number

_CHOOSE: Sequence[Step] = (
    ("keep those that are divisible by {k}", "xs = [x for x in xs if x % {k} == 0]"),
    ("keep those above {k}", "xs = [x for x in xs if x > {k}]"),
    ("drop those that equal the one before them", "xs = [x for i, x in enumerate(xs) if i == 0 or x != xs[i - 1]]"),
    ("keep every second one, the first included", "xs = xs[::2]"),
    ("drop the largest {k} of them, the later ones first where they are equal",
     "stay = sorted(range(len(xs)), key=lambda i: (xs[i], i))[: max(len(xs) - {k}, 0)]\n"
     "    xs = [xs[i] for i in sorted(stay)]"),
    ("keep the first of each value", "xs = list(dict.fromkeys(xs))"),
)  # fmt: skip
_CHANGE: Sequence[Step] = (
    ("replace each by its square", "xs = [x * x for x in xs]"),
    ("replace each by the sum of the digits of its absolute value", "xs = [sum(map(int, str(abs(x)))) for x in xs]"),
    ("replace each by the sum of it and all before it", "xs = [sum(xs[: i + 1]) for i in range(len(xs))]"),
    ("replace each by its distance from {k}", "xs = [abs(x - {k}) for x in xs]"),
    ("add to each its place, counted from {k}", "xs = [x + i + {k} for i, x in enumerate(xs)]"),
    ("multiply each by {k}", "xs = [x * {k} for x in xs]"),
)
_END: Sequence[Step] = (
    ("return them in descending order", "return sorted(xs, reverse=True)"),
    ("return them in reverse", "return xs[::-1]"),
    ("return their sum modulo 1{k}7", "return sum(xs) % 1{k}7"),
    ("return how many different values there are", "return len(set(xs))"),
    ("return the largest minus the smallest, or -1 if none is left", "return max(xs) - min(xs) if xs else -1"),
    ("return the pair of the smallest and how often it occurs, or an empty list if none is left",
     "return [min(xs), xs.count(min(xs))] if xs else []"),
)  # fmt: skip
_WORDS = (
    "river",
    "lamp",
    "stone",
    "apple",
    "tree",
    "noon",
    "level",
    "cloud",
    "ink",
    "owl",
    "paper",
    "rotor",
    "sun",
    "fern",
)
_OF_WORDS: Sequence[Sequence[Step]] = (
    (
        ("keep the words with more than {k} letters", "xs = [x for x in xs if len(x) > {k}]"),
        ("keep the words that contain an e or an o", 'xs = [x for x in xs if "e" in x or "o" in x]'),
        ("drop the words that read the same backwards", "xs = [x for x in xs if x != x[::-1]]"),
    ),
    (
        ("write each backwards", "xs = [x[::-1] for x in xs]"),
        ("move the first letter of each to its end", "xs = [x[1:] + x[:1] for x in xs]"),
        ("leave out every letter that is in an even place (the second, the fourth, …)", "xs = [x[::2] for x in xs]"),
    ),
    (
        ("return them joined by single spaces", 'return " ".join(xs)'),
        ("return them sorted by length, equal lengths by the alphabet", "return sorted(xs, key=lambda x: (len(x), x))"),
        ("return the number of letters of all of them", "return sum(map(len, xs))"),
        ("return their first letters, joined", 'return "".join(x[:1] for x in xs)'),
    ),
)


class Functions:
    """Two kinds: `numbers` and `words`."""

    def __init__(self, what: str = "all", seed: int = 0) -> None:
        """Raises UserError for an unknown kind."""
        self._kinds = {kind: _KINDS[kind] for kind in kinds_of(what, _KINDS, "functions")}
        self._seed = seed

    def tasks(self, side: Side, n: int) -> list[Task]:
        """`n` problems, the same each time. Raises UserError where there are not as many."""
        return drawn(self._kinds, side, n, self._seed, "functions")


def _numbers(rng: random.Random) -> Task:
    return _made(rng, "a list of whole numbers", (_CHOOSE, _CHANGE, _END), _some_numbers)


def _words(rng: random.Random) -> Task:
    return _made(rng, "a list of words", _OF_WORDS, _some_words)


def _some_numbers(rng: random.Random) -> list[Any]:
    return [rng.randint(-30, 60) for _ in range(rng.randint(0, 9))]


def _some_words(rng: random.Random) -> list[Any]:
    return rng.choices(_WORDS, k=rng.randint(0, 7))


def _made(
    rng: random.Random, takes: str, among: Sequence[Sequence[Step]], draw: Callable[[random.Random], list[Any]]
) -> Task:
    # A choice, one change or two, perhaps another choice, and an end.
    choose, change, end = among
    steps = [rng.choice(choose), *rng.sample(change, rng.randint(1, 2)), rng.choice(end)]
    if rng.random() < 0.5:
        steps.insert(-1, rng.choice([step for step in choose if step != steps[0]]))
    chosen = [(step, str(rng.randint(2, 5))) for step in steps]
    told = "; then ".join(words.replace("{k}", k) for (words, _), k in chosen)

    # All else follows from what the function does, so that one function is never on both sides.
    own = random.Random(told)
    name = own.choice(("transform", "digest", "condense", "reshape", "evaluate"))
    program = f"def {name}(xs):\n" + "".join(f"    {code.replace('{k}', k)}\n" for (_, code), k in chosen)
    space: dict[str, Any] = {}
    exec(program, space)  # our own lines, from above
    lists: list[list[Any]] = [[]]
    while len(lists) < SHOWN + HIDDEN:
        if (one := draw(own)) not in lists:
            lists.append(one)
    cases = [[[xs], space[name](list(xs))] for xs in reversed(lists)]  # the empty list comes last: it is hidden
    if len({repr(result) for _, result in cases[SHOWN:]}) < LEAST_RESULTS:  # could be guessed
        return _made(rng, takes, among, draw)
    examples = "\n".join(f"{name}({given[0]!r}) == {result!r}" for given, result in cases[:SHOWN])
    prompt = (
        f"Write a Python function {name}(xs) that takes {takes} and does this, in this order: {told}. For example:\n"
        f"{examples}\nGive the whole function as your answer. It is tested on other lists, the empty one among them."
    )
    return Task("", prompt, program, meta={"function": name, "cases": cases[SHOWN:]})


_KINDS: dict[str, Callable[[random.Random], Task]] = {"numbers": _numbers, "words": _words}
