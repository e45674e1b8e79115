"""What the fork server does once, so that no session has to: imports, first uses, and a heap that forks cheaply."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from typing import Any

from . import linux, worker
from .isolation import seccomp

_HUGE = 1 << 21  # bytes of a huge page
# Python keeps objects of up to 512 bytes in pools, each for one size, in steps of 16 bytes.
_POOL, _POOL_HEAD, _SMALL, _STEP = 1 << 14, 48, 512, 16
_MOST_HOLES = 100_000  # of one size
_EMPTY = sys.getsizeof(b"")
_fillers: list[Any] = []


def up(modules: list[str]) -> list[str]:
    """Import `modules`, use them a first time, and freeze all that there is; returns those that could be imported."""
    done = []
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            done.append(name)
    if "sympy" in done:
        # The first factorisation and print build caches and import much that is lazy.
        sympy = sys.modules["sympy"]
        x = sympy.Symbol("x")
        str(sympy.factor(x**2 - 1)), str(sympy.solve(x**2 - 2, x)), str(sympy.integrate(x, x))
    if "selectors" in sys.modules and seccomp.supported():
        selectors: Any = sys.modules["selectors"]
        selectors.DefaultSelector = selectors.PollSelector  # what it would find in a session, which has no epoll
    for name in [name for name in sys.modules if name == "child" or name.startswith("child.")]:
        del sys.modules[name]
    worker.prepare()
    sys._clear_type_cache()  # a name that falls out of it in a session would be written to
    gc.collect()
    gc.freeze()
    _fill_holes()
    _gather_pages()
    return done


def _fill_holes() -> None:
    """Use up the free places that imports have left between objects. What is made from then on, here and in sessions,
    lies together: a fork copies each page that is written to, and objects that share a page are copied once.
    """
    for size in range(_STEP, _SMALL + 1, _STEP):
        in_a_row = last = 0
        for _ in range(_MOST_HOLES):
            filler: Any = bytes(size - _EMPTY) if size > _EMPTY else 0.5 * last if size > _STEP else object()
            in_a_row = in_a_row + 1 if id(filler) == last + size else 1
            last = id(filler)
            _fillers.append(filler)
            if in_a_row == (_POOL - _POOL_HEAD) // size:
                break


def _gather_pages() -> None:
    """Put the heap into huge pages: a fork then shares 2 MB with one entry, and copies small pages when written to."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        lines = [line.split() for line in file]
    for area, rights, _, _, _, *name in lines:
        start, end = (int(address, 16) for address in area.split("-"))
        start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if rights == "rw-p" and name in ([], ["[heap]"]) and start < end:
            linux.collapse(start, end - start)
