"""Problems that are drawn each on the side that its own text says: learnt or held out, whatever the seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from solostream import registry
from solostream.envs.data.generators import Side
from solostream.envs.types import Task
from solostream.errors import UserError

TEST_SHARE = 0.25
IN_VAIN = 400  # draws in a row that bring no new problem: there are no more


def kinds_of(what: str, known: Mapping[str, Any], component: str) -> list[str]:
    """The kinds that "NAME:one,two" asks for; "all" and nothing ask for all. Raises UserError."""
    if what in ("", "all"):
        return list(known)
    chosen = [name.strip() for name in what.split(",")]
    for name in chosen:
        if name not in known:
            raise UserError(f"{component} has no kind '{name}'; {registry.near(name, [*known, 'all'])}")
    return chosen


def drawn(kinds: Mapping[str, Callable[[random.Random], Task]], side: Side, n: int, seed: int, name: str) -> list[Task]:
    """`n` different problems of the `side`, the kinds in turn as long as each has more; ids are made of the content.

    Raises UserError where all kinds together have not as many.
    """
    found: dict[str, Task] = {}
    draws = {kind: random.Random(f"{name}/{kind}/{seed}/{side}") for kind in kinds}
    misses = 0
    turns = list(kinds)
    while len(found) < n:
        kind = turns[len(found) % len(turns)]
        task = kinds[kind](draws[kind])
        digest = hashlib.blake2b(f"{kind}\0{task.prompt}".encode(), digest_size=8).digest()
        fits = (int.from_bytes(digest) < TEST_SHARE * 2**64) == (side == "test")
        if not fits or (key := f"{kind}/{digest.hex()}") in found:
            misses += 1
            if misses > IN_VAIN:
                turns.remove(kind)
                misses = 0
            if not turns:
                asked = f"{name}:{','.join(kinds)}"
                raise UserError(f"{asked} has {len(found)} {side} problems, and {n} are wanted: ask for fewer")
            continue
        misses = 0
        found[key] = replace(task, id=key, source=f"{name}/{kind}")
    return list(found.values())
