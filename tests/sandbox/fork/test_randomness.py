"""What a session does to the generators that it inherits, in this process."""

import multiprocessing
import random
import statistics
from collections.abc import Iterator

import numpy
import pytest

from solostream.sandbox.fork.child import randomness


@pytest.fixture(autouse=True)
def key() -> Iterator[None]:
    process = multiprocessing.current_process()
    before = process.authkey
    yield
    process.authkey = before


class Closed(random.Random):
    """One whose state cannot be looked at."""

    seeded = 0

    def seed(self, *args: object) -> None:  # type: ignore[override]
        type(self).seeded += 1
        super().seed(*args)  # type: ignore[arg-type]

    def getstate(self) -> tuple[object, ...]:
        raise NotImplementedError


def test_each_reseeding_gives_every_generator_numbers_of_its_own() -> None:
    python, other, legacy, closed = random.Random(3), random.Random(3), numpy.random.RandomState(3), Closed(3)
    generators = randomness.Generators([python, other, legacy, closed])
    assert randomness._state(python)  # written to directly
    assert randomness._state(legacy)
    assert randomness._state(closed) is None
    seeded, drawn, keys = Closed.seeded, [], set()
    for _ in range(3000):
        generators.reseed()
        drawn.append((python.random(), other.random(), legacy.random_sample(), closed.random()))
        keys.add(bytes(multiprocessing.current_process().authkey))
    assert Closed.seeded == seeded + 3000
    assert len({number for row in drawn for number in row}) == 4 * 3000
    assert len(keys) == 3000
    assert {len(key) for key in keys} == {32}
    for column in zip(*drawn, strict=True):  # uniform: five standard errors
        assert abs(statistics.mean(column) - 1 / 2) < 5 / (12 * 3000) ** 0.5
        assert abs(statistics.variance(column) - 1 / 12) < 5 / (180 * 3000) ** 0.5


def test_the_numbers_are_those_of_the_state_that_was_written() -> None:
    python = random.Random(3)
    randomness.Generators([python]).reseed()
    twin = random.Random()
    twin.setstate(python.getstate())
    assert [python.getrandbits(32) for _ in range(2000)] == [twin.getrandbits(32) for _ in range(2000)]


def test_generators_of_modules_are_found() -> None:
    found = randomness.find()
    assert random.seed.__self__ in found  # type: ignore[attr-defined]
    assert numpy.random.mtrand._rand in found
    assert not any(isinstance(generator, random.SystemRandom) for generator in found)
