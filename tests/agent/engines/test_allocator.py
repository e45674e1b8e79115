"""What the C library does with memory that is free, by what a process still holds."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import numpy as np
from solostream.agent.engines import allocator

def resident():
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024  # MiB

getattr(allocator, sys.argv[1])()
before = resident()
large, between = [], []
for _ in range(50):
    large.append(np.ones(500_000))  # 3.8 MiB
    between.append(np.ones(1_000))  # what is left holds the heap's end where it is
during = resident()
del large
print(during - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("name", "least", "most"), [("keep_freed_memory", 150, 250), ("return_freed_memory", 0, 20)])
def test_what_is_free_is_kept_or_given_back(name: str, least: float, most: float) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True)
    during, after = map(float, done.stdout.split())
    assert during > 150
    assert least <= after <= most
