"""Which rows are prefilled together: one pass computes all of its rows to the width of the longest."""

from __future__ import annotations

import numpy as np

FEED_TOKENS = 4096  # of one pass, padding included
PASS_TOKENS = 64  # a pass costs about as much as this much padding in another


def passes(rows: np.ndarray, behind: np.ndarray) -> list[np.ndarray]:
    """`rows` in groups with about as much to catch up on, few enough for one pass each. behind: tokens a row, [rows].

    A group is closed where its padding would cost more than another pass. Rows come sorted within a group.
    """
    groups: list[list[int]] = []
    width = tokens = padding = 0
    for i in np.argsort(-behind, kind="stable"):
        size = int(behind[i])
        extra = padding + width - size
        if not groups or extra > max(PASS_TOKENS, tokens // 4) or (len(groups[-1]) + 1) * width > FEED_TOKENS:
            groups.append([])
            width, tokens, extra = size, 0, 0
        groups[-1].append(int(rows[i]))
        tokens, padding = tokens + size, extra
    return [np.sort(group) for group in groups]
