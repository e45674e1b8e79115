"""reasoning-gym's procedural problems (Stojanovski et al., arXiv 2505.24760), each graded by its own verifier.

`reasoning-gym:chain_sum`, `reasoning-gym:chain_sum=2,gcd` (twice as many of the first). The library draws item i of
seed s from `Random(s + i)`, so that neighbouring seeds share their items: here every `CHUNK` items have a seed of their
own, and the hash of a question decides whether it is to be learnt or held out, so that no seed can mix the two.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from solostream import registry
from solostream.envs.data.combine import counts
from solostream.envs.data.generators import Side
from solostream.envs.types import Task
from solostream.errors import UserError

CHUNK = 500  # items of one seed
TEST_SHARE = 0.25  # of all questions
IN_VAIN = 500  # draws in a row, beside ten for each problem found, that bring no new one: there are no more


class ReasoningGym:
    """config: kind -> its own configuration, as in `reasoning_gym.create_dataset(kind, **config)`."""

    def __init__(self, what: str, seed: int = 0, *, config: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Raises UserError for an unknown kind, weight or key of a configuration."""
        self._seed, self._config = seed, {kind: dict(own) for kind, own in (config or {}).items()}
        self._library = _library()
        self._weights = self._weighted(what)
        for kind in (*self._weights, *self._config):
            self._dataset(kind, 0)

    def tasks(self, side: Side, n: int) -> list[Task]:
        """`n` problems, the kinds in turn by their weights. Raises UserError where a kind has fewer."""
        wanted = dict(zip(self._weights, counts(list(self._weights.values()), n), strict=True))
        found = {kind: self._distinct(kind, side, count) for kind, count in wanted.items()}
        # each kind evenly over the whole list, so that its first part has the same mixture
        places = [((i + 0.5) / len(tasks), kind, task) for kind, tasks in found.items() for i, task in enumerate(tasks)]
        return [task for _, _, task in sorted(places, key=lambda place: place[:2])]

    def _distinct(self, kind: str, side: Side, n: int) -> list[Task]:
        tasks: dict[str, Task] = {}
        misses = 0
        for entry in self._entries(kind):
            if len(tasks) == n:
                break
            misses += 1
            if misses > IN_VAIN + 10 * len(tasks):
                raise UserError(
                    f"reasoning-gym's {kind} has only {len(tasks)} different {side} problems in this configuration, "
                    f"and {n} are wanted: ask for fewer, or widen [data.reasoning-gym] config"
                )
            question = str(entry["question"]).strip()
            digest = hashlib.blake2b(f"{kind}\0{question}".encode(errors="replace"), digest_size=8).digest()
            if question not in tasks and (int.from_bytes(digest) < TEST_SHARE * 2**64) == (side == "test"):
                tasks[question] = _task(kind, question, digest.hex(), entry)
                misses = 0
        return list(tasks.values())

    def _entries(self, kind: str) -> Iterator[dict[str, Any]]:
        """Without end."""
        chunk = 0
        while True:
            dataset = self._dataset(kind, chunk)
            yield from (dataset[i] for i in range(CHUNK))
            chunk += 1

    def _dataset(self, kind: str, chunk: int) -> Any:
        """Raises UserError for what the kind's configuration refuses."""
        self._known(kind)
        own = self._config.get(kind, {})
        known = [key for key in self._library.DATASETS[kind][1].__dataclass_fields__ if key not in ("seed", "size")]
        for key in own:
            if key not in known:
                raise UserError(f"reasoning-gym's {kind} has no '{key}'; {registry.near(key, known)}")
        seed = random.Random(f"{self._seed}/{kind}/{chunk}").getrandbits(31)
        try:
            return self._library.create_dataset(kind, **{"seed": seed, "size": CHUNK, **own})
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(f"reasoning-gym's {kind} refuses its configuration {own}: {error}") from None

    def _weighted(self, what: str) -> dict[str, float]:
        """Of "chain_sum=2,gcd" {"chain_sum": 2.0, "gcd": 1.0}. Raises UserError."""
        found: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in what.split(","))):
            kind, equals, weight = part.partition("=")
            self._known(kind)
            try:
                found[kind] = float(weight) if equals else 1.0
            except ValueError:
                found[kind] = 0.0
            if not 0 < found[kind] < float("inf"):
                raise UserError(f"reasoning-gym: the weight of {kind} is a number above 0, not {weight!r}")
        if not found:
            raise UserError("reasoning-gym needs its kinds: data.path = 'reasoning-gym:chain_sum,gcd'")
        return found

    def _known(self, kind: str) -> None:
        """Raises UserError for a kind that the library does not have."""
        known = sorted(set(self._library.DATASETS) - {"composite"})
        if kind not in known:
            near = get_close_matches(kind, known, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
            raise UserError(f"reasoning-gym has no kind '{kind}'; {hint}")


def _library() -> Any:
    """What makes and registers its data sets. Raises UserError where it is not installed."""
    try:
        import reasoning_gym.factory
    except ModuleNotFoundError as error:
        raise UserError(f"data 'reasoning-gym' needs {error.name}: pip install 'solostream[reasoning-gym]'") from None
    return reasoning_gym.factory


def _task(kind: str, question: str, digest: str, entry: Mapping[str, Any]) -> Task:
    meta = {"kind": kind, "scorer": "reasoning-gym", "row": dict(entry)}
    return Task(f"{kind}/{digest}", question, str(entry["answer"]), f"reasoning-gym/{kind}", meta)
