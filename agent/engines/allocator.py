"""The C library's memory, told to keep what it frees, or to give it back."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENAS = -1, -2, -3, -8  # glibc's malloc.h
_KEPT = 512 << 20  # bytes that may lie unused at the end of the heap
_LARGE = 32 << 20  # bytes of a block that is still mapped by itself; glibc takes no more
_SMALL = 1 << 20  # the same, where memory counts more than time


def keep_freed_memory() -> None:
    """For this process and for good: blocks that tensors have left are used again.

    By default glibc gives blocks of some hundred kilobytes back to the kernel and asks for them again, and every page
    of them faults anew: 46,000 faults a second while a small model samples and learns, a fifth of the time. Nothing
    happens with another C library.
    """
    _tell({_MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: 64 << 20})


def return_freed_memory() -> None:
    """For this process and for good: the kernel has a block of more than a megabyte back when its tensor is gone.

    By default glibc comes to keep blocks of up to 32 MB on its heap, where those of one size leave holes that those of
    another do not fill: a checkpointed update of 16,384 tokens held 608 MB of which 302 were in use, and the many
    short-lived tensors of adapters on 135 M left 0.3 of 2.8 GB unused. And all threads have one heap: what sampled from
    4 bits in a thread of its own came to hold 0.3 of 2.3 GB in a second one.
    """
    _tell({_MMAP_THRESHOLD: _SMALL, _ARENAS: 1})


def trim() -> None:
    """Once: the kernel has what lies free in all heaps, as after a load that made much of what it kept small."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def _tell(settings: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in settings.items():
            mallopt(name, value)
