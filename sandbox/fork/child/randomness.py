"""Random numbers of its own for every session: forks share the state of every generator that was made before them.

Python's and numpy's generators are Mersenne twisters: 624 words, of which any are a valid state. Each session has the
kernel write new ones straight into them. Seeding each by its own method took a tenth of what a session costs.
"""

from __future__ import annotations

import _random
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from . import linux

_WORDS = 624
_BYTES = 4 * _WORDS
_KEY = 32  # bytes of multiprocessing's


def find() -> list[Any]:
    """Every `random.Random` and numpy generator, whichever module keeps it (sympy has one of its own), and torch's.
    Those that are frozen are not seen.
    """
    kinds: list[type] = [sys.modules["random"].Random] if "random" in sys.modules else []
    if "numpy.random" in sys.modules:
        kinds.append(sys.modules["numpy.random"].RandomState)
    stateless = getattr(sys.modules.get("random"), "SystemRandom", ())
    found = [held for held in gc.get_objects() if isinstance(held, tuple(kinds)) and not isinstance(held, stateless)]
    return found + [sys.modules[name] for name in ("torch",) if name in sys.modules]


class Generators:
    """Those that `find` has found, and multiprocessing's key."""

    def __init__(self, found: list[Any]) -> None:
        self._calls = linux.Calls()
        self._seeds: list[Callable[[], object]] = []  # of those whose state lies where nobody knows
        for generator in found:
            generator.seed()
            address = _state(generator)
            if address is None:
                self._seeds.append(generator.seed)
            else:
                self._draw(address, _BYTES)
        if "multiprocessing.process" in sys.modules:
            process = sys.modules["multiprocessing.process"].current_process()
            process.authkey = os.urandom(_KEY)
            address = id(process.authkey) + bytes.__basicsize__ - 1
            if ctypes.string_at(address, _KEY) == bytes(process.authkey):
                self._draw(address, _KEY)
            else:
                self._seeds.append(lambda: setattr(process, "authkey", os.urandom(_KEY)))

    def reseed(self) -> None:
        """In a session: none of the others will draw the same numbers. Raises OSError."""
        self._calls.make()
        for seed in self._seeds:
            seed()

    def _draw(self, address: int, size: int) -> None:
        self._calls.add("getrandom", ctypes.c_void_p(address), ctypes.c_size_t(size), 0)


def _state(generator: Any) -> int | None:
    """Where a generator keeps its words; None when they do not lie where they should."""
    try:
        if isinstance(generator, _random.Random):
            words: Any = generator.getstate()
            words = words[1][:_WORDS]
            address = id(generator) + object.__basicsize__ + ctypes.sizeof(ctypes.c_int)  # behind the place in them
        else:
            words = generator.get_state()[1]
            address = generator._bit_generator.ctypes.state_address
        held = (ctypes.c_uint32 * _WORDS).from_address(address)
        return address if list(held) == [int(word) for word in words] else None
    except Exception:  # another kind of generator
        return None
