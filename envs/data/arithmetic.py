"""Generated word problems that need computation: Python is the way, guessing is not.

Twelve kinds, two phrasings each, three levels (the size of the operands). A problem's id and split follow from the hash
of its operands, so train and test never share operands, whatever the seeds and phrasings. `meta` holds kind, level and
`code`, a reference solution whose last expression is the answer.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from solostream.envs.types import Task
from solostream.errors import UserError

LEVELS = (1, 2, 3)
TEST_SHARE = 0.1
HASH_DIGITS = 12
Operands = dict[str, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """`draw(rng, size)` makes the operands that both phrasings and the code are formatted with."""

    draw: Callable[[random.Random, int], Operands]
    solve: Callable[[Operands], int]
    code: str
    phrasings: tuple[str, str]


def _digits(rng: random.Random, n: int) -> int:
    """Uniform among the integers of n decimal digits (from 11 up: 0, 1 and 10 make problems that can be guessed)."""
    return rng.randint(max(11, 10 ** (n - 1)), 10**n - 1)


def _draw(**sizes: int) -> Callable[[random.Random, int], Operands]:
    """Each operand has `sizes[name] + level` digits."""
    return lambda rng, level: {name: _digits(rng, base + level) for name, base in sizes.items()}


def _modulus(rng: random.Random, level: int) -> int:
    """At least three digits, or the residue could be guessed."""
    return _digits(rng, max(3, level + 1))


def _draw_modular(rng: random.Random, level: int) -> Operands:
    return {**_draw(a=1, b=1)(rng, level), "m": _modulus(rng, level)}


def _draw_common_factor(rng: random.Random, level: int) -> Operands:
    """Two numbers whose gcd is large, or "1" would be right 61 % of the time."""
    factor = _digits(rng, 2) if level < 3 else _digits(rng, 3)
    first, second = rng.sample(range(2, 4**level + 2), 2)
    return {"a": factor * first, "b": factor * second}


@functools.cache
def _primes() -> list[int]:
    sieve = bytearray([1]) * 100_000
    sieve[:2] = b"\0\0"
    for k in range(2, 317):
        if sieve[k]:
            sieve[k * k :: k] = bytes(len(range(k * k, len(sieve), k)))
    return [k for k, prime in enumerate(sieve) if prime]


def _primes_between(a: int, b: int) -> list[int]:
    """Primes p with a <= p < b, for b up to 100,000."""
    return _primes()[bisect_left(_primes(), a) : bisect_left(_primes(), b)]


def _recur(o: Operands) -> int:
    x = o["a"]
    for _ in range(o["n"]):
        x = (o["p"] * x + o["q"]) % o["m"]
    return x


KINDS: dict[str, Kind] = {
    "muladd": Kind(
        _draw(a=1, b=1, c=1),
        lambda o: o["a"] * o["b"] + o["c"],
        "{a}*{b}+{c}",
        ("What is {a} times {b} plus {c}?", "Multiply {a} by {b}, then add {c}."),
    ),
    "modmul": Kind(
        _draw_modular,
        lambda o: o["a"] * o["b"] % o["m"],
        "{a}*{b}%{m}",
        ("What is {a} times {b} modulo {m}?", "Find the remainder of {a} times {b} divided by {m}."),
    ),
    "modpow": Kind(
        _draw_modular,
        lambda o: pow(o["a"], o["b"], o["m"]),
        "pow({a},{b},{m})",
        ("What is {a} to the power {b} modulo {m}?", "Raise {a} to the power {b} and reduce it modulo {m}."),
    ),
    "gcd": Kind(
        _draw_common_factor,
        lambda o: math.gcd(o["a"], o["b"]),
        "import math\nmath.gcd({a},{b})",
        ("What is the greatest common divisor of {a} and {b}?", "Find the largest number that divides {a} and {b}."),
    ),
    "lcm": Kind(
        _draw_common_factor,
        lambda o: math.lcm(o["a"], o["b"]),
        "import math\nmath.lcm({a},{b})",
        ("What is the least common multiple of {a} and {b}?", "Find the smallest number that {a} and {b} divide."),
    ),
    "primesum": Kind(
        lambda rng, level: {"n": rng.randint(*((30, 99), (100, 999), (1000, 1999))[level - 1])},
        lambda o: sum(_primes_between(2, o["n"])),
        "from sympy import *\nsum(primerange({n}))",
        ("What is the sum of the primes below {n}?", "Add up the primes smaller than {n}."),
    ),
    "primecount": Kind(
        lambda rng, level: dict(zip("ab", (lambda x: (x, x + _digits(rng, level + 1)))(_digits(rng, 3)), strict=True)),
        lambda o: len(_primes_between(o["a"], o["b"])),
        "from sympy import *\nlen(list(primerange({a},{b})))",
        ("How many primes are at least {a} and below {b}?", "Count the primes from {a}, stopping before {b}."),
    ),
    "digitsum": Kind(
        lambda rng, level: {"a": _digits(rng, level + 1), "b": rng.randint(11, 10 + 30 * level)},
        lambda o: sum(map(int, str(o["a"] ** o["b"]))),
        "sum(map(int,str({a}**{b})))",
        ("What is the digit sum of {a} to the power {b}?", "Add up the digits of {a} to the power {b}."),
    ),
    "squares": Kind(
        lambda rng, level: {"a": _digits(rng, 2), "b": 99 + _digits(rng, level + 1)},
        lambda o: sum(k * k for k in range(o["a"], o["b"])),
        "sum(k*k for k in range({a},{b}))",
        (
            "What is the sum of the squares of the integers from {a}, stopping before {b}?",
            "Add up the squares of all numbers at least {a} and below {b}.",
        ),
    ),
    "divisible": Kind(
        lambda rng, level: {"n": _digits(rng, level + 2), "a": rng.randint(3, 9), "b": rng.randint(11, 39)},
        lambda o: sum(k % o["a"] == 0 or k % o["b"] == 0 for k in range(o["n"])),
        "sum(not k%{a} or not k%{b} for k in range({n}))",
        (
            "How many of the first {n} integers, from 0, are multiples of {a} or {b}?",
            "Count the multiples of {a} or {b} below {n}, 0 included.",
        ),
    ),
    "recurrence": Kind(
        lambda rng, level: {
            "a": _digits(rng, level + 1),
            "p": rng.randint(2, 9),
            "q": rng.randint(1, 9),
            "m": _modulus(rng, level),
            "n": rng.randint(5, 9 * level),
        },
        _recur,
        "x={a}\nfor _ in range({n}): x=({p}*x+{q})%{m}\nx",
        (
            "Start with x = {a} and replace x by {p} x plus {q} modulo {m}, {n} times. What is x?",
            "Begin at {a}. Then {n} times, multiply by {p}, add {q} and reduce modulo {m}. Where do you end?",
        ),
    ),
    "binomial": Kind(
        lambda rng, level: {"n": _digits(rng, 2), "k": rng.randint(3, 3 * level + 2), "m": _modulus(rng, level)},
        lambda o: math.comb(o["n"], o["k"]) % o["m"],
        "import math\nmath.comb({n},{k})%{m}",
        ("In how many ways can you choose {k} of {n} items, modulo {m}?", "What is {n} choose {k} modulo {m}?"),
    ),
}


def generate(
    n: int,
    *,
    seed: int,
    split: Literal["train", "test"] = "train",
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
) -> list[Task]:
    """`n` distinct problems, kinds and levels in turn. The same arguments give the same problems.

    Raises UserError for an unknown kind, level or split, or when the kinds hold fewer than `n` distinct problems.
    """
    kinds, levels = list(kinds or KINDS), list(levels or LEVELS)
    checks: list[tuple[str, object, list[Any]]] = [
        *(("kind", kind, list(KINDS)) for kind in kinds),
        *(("level", level, list(LEVELS)) for level in levels),
        ("split", split, ["train", "test"]),
    ]
    for name, value, allowed in checks:
        if value not in allowed:
            raise UserError(f"unknown {name} {value!r}; one of: {', '.join(map(str, allowed))}")
    rng = random.Random(f"{seed}/{split}")
    tasks: dict[str, Task] = {}
    misses = 0  # draws since the last new problem
    for turn in itertools.count():
        if len(tasks) == n:
            return list(tasks.values())
        misses += 1
        if misses > 10_000 + 200 * len(tasks):
            break
        name, level = kinds[turn % len(kinds)], levels[turn // len(kinds) % len(levels)]
        kind = KINDS[name]
        operands = kind.draw(rng, level)
        phrasing = rng.randrange(len(kind.phrasings))
        code = kind.code.format(**operands)
        digest = hashlib.sha256(code.encode()).hexdigest()[:HASH_DIGITS]
        task_id = f"{name}-{level}-{digest}-{phrasing}"
        is_test = int(digest, 16) < TEST_SHARE * 16**HASH_DIGITS
        if task_id in tasks or is_test != (split == "test"):
            continue
        prompt = kind.phrasings[phrasing].format(**operands)
        meta = {"kind": name, "level": level, "code": code}
        tasks[task_id] = Task(task_id, prompt, str(kind.solve(operands)), f"arithmetic/{name}", meta)
        misses = 0
    raise UserError(f"these kinds and levels hold only {len(tasks)} distinct {split} problems; ask for fewer")
