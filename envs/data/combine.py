"""Sets of tasks from sets of tasks: without repetitions, divided, mixed."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Iterable, Sequence

from solostream.envs.types import Task
from solostream.errors import UserError


def dedup(items: Iterable[Task]) -> list[Task]:
    """The first task of each prompt. Ways to encode one text do not make prompts different (line ends, composed
    accents, white space at the ends of lines); case and indentation do: x is not X, and Python is indented.
    """
    found: dict[str, Task] = {}
    for task in items:
        lines = unicodedata.normalize("NFC", task.prompt).splitlines()
        found.setdefault("\n".join(line.rstrip() for line in lines).strip("\n"), task)
    return list(found.values())


def split(items: Iterable[Task], share: float, *, seed: int = 0) -> tuple[list[Task], list[Task]]:
    """(train, test), `share` of the tasks in expectation going to test.

    A task's side follows from its prompt and the seed alone: it stays there when other tasks come or go, and equal
    prompts are never on both sides. Raises UserError unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise UserError(f"share must be between 0 and 1, not {share}")
    sides: tuple[list[Task], list[Task]] = ([], [])
    for task in items:
        digest = hashlib.blake2b(f"{seed}\0{task.prompt}".encode(errors="replace"), digest_size=8).digest()
        sides[int.from_bytes(digest) < share * 2**64].append(task)
    return sides


def mix(parts: Sequence[tuple[Sequence[Task], float]], n: int, *, seed: int = 0) -> list[Task]:
    """`n` tasks, each source with its share of them (largest remainder), in random order.

    Within a source tasks are drawn without replacement; once all were drawn they start over. Raises UserError for
    weights that are negative or all zero, and for an empty source.
    """
    weights = [weight for _, weight in parts]
    if not weights or min(weights) < 0 or sum(weights) <= 0 or not all(items for items, _ in parts):
        raise UserError("mix needs sources that hold tasks, and weights that are not negative and not all 0")
    rng = random.Random(seed)
    drawn: list[Task] = []
    for (items, _), count in zip(parts, counts(weights, n), strict=True):
        while count > 0:
            drawn += rng.sample(list(items), min(count, len(items)))
            count -= min(count, len(items))
    rng.shuffle(drawn)
    return drawn


def counts(weights: Sequence[float], n: int) -> list[int]:
    """`n` divided as the weights say: by the largest remainder."""
    exact = [n * weight / sum(weights) for weight in weights]
    whole = [int(x) for x in exact]
    for index in sorted(range(len(weights)), key=lambda i: whole[i] - exact[i])[: n - sum(whole)]:
        whole[index] += 1
    return whole
