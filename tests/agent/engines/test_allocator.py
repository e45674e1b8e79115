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

HEAPS = """
import ctypes, threading
from solostream.agent.engines import allocator

allocator.return_freed_memory()
together = threading.Barrier(5)
def work():
    together.wait()  # threads that begin at one time would have a heap each
    kept = [bytes(3_000) for _ in range(500)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
together.wait()
together.wait()
ctypes.CDLL(None).malloc_stats()
"""
TRIM = """
import sys
from solostream.agent.engines import allocator

def resident():
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024  # MiB

blocks = [bytes(30_000) for _ in range(2_300)]  # 66 MiB
last = bytes(30_000)  # holds the heap's end where it is
full = resident()
del blocks
if sys.argv[1] == "trim":
    allocator.trim()
print(full - resident())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


@glibc
@pytest.mark.parametrize(("name", "least", "most"), [("keep_freed_memory", 150, 250), ("return_freed_memory", 0, 20)])
def test_what_is_free_is_kept_or_given_back(name: str, least: float, most: float) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True)
    during, after = map(float, done.stdout.split())
    assert during > 150
    assert least <= after <= most


@glibc
def test_all_threads_have_one_heap() -> None:
    """By default each thread that allocates beside another gets one of its own, and what is free there stays there."""
    heaps = lambda script: subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stderr.count("Arena ")
    assert heaps(HEAPS) == 1
    assert heaps(HEAPS.replace("allocator.return_freed_memory()", "")) > 1


@glibc
def test_what_lies_free_within_the_heap_is_given_back_once_when_asked() -> None:
    left = lambda how: float(
        subprocess.run([sys.executable, "-c", TRIM, how], capture_output=True, text=True, check=True).stdout
    )
    assert left("trim") > 55
    assert left("nothing") < 10
