"""Python's search for cyclic garbage, made rarer while many episodes are in flight.

A search of the oldest generation walks every container that is alive: what importing torch and transformers leaves,
some hundred thousand of them, and the tasks and frames of all episodes. By default 70,000 new ones bring it on, so that
a batch of 8,192 is walked several times a step: half of what the collector costs an episode
(`benchmarks/collector.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 20_000  # containers made and not yet freed, after which the young are searched; CPython's own number is 700


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within: what is there already is never searched, and what comes more rarely. Afterwards all is as before."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
