"""What the numbers of `benchmarks/gpu.py` were wanted to be."""

from __future__ import annotations

from typing import Any

MFU, PLAN = 0.4, 0.15  # the learner's share of the device's peak, at least; how far its plan may be off


def missed(row: dict[str, Any]) -> list[str]:
    """The goals that a row of a GPU misses; the best of a part's updates counts."""
    mfu, off = max(row.get("mfu", 0), row.get("compiled mfu", 0)), abs(row.get("plan / peak", 1) - 1)
    found = [f"{mfu:.1%} of the device's peak, wanted {MFU:.0%}"] if "compiled mfu" in row and mfu < MFU else []
    return found + ([f"the plan of {row['variant']} is {off:.0%} off, wanted {PLAN:.0%}"] if off > PLAN else [])
