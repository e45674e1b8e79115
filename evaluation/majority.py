"""maj@k for every k up to n: how often the vote of k of the n samples is right, over all subsets, counted exactly.

Samples fall into classes of equal answers (the verifier's equality): n_j of class j, r_j of them right. A subset votes
for its largest class. A tie goes to the class seen first: over the order of samples, to each of t tied ones 1/t of the
time. With m the largest class's count and S the classes that have exactly m of the subset,

    maj@k = Σ_m Σ_S  mean_{j∈S}(r_j/n_j) · Π_{j∈S} C(n_j, m) · [x^{k−m|S|}] Π_{j∉S} Σ_{c<m} C(n_j, c) xᶜ  /  C(n, k)

A sample without an answer votes for nothing: a factor 1 + x. All k come out of one pass over m and the classes. It is
unbiased for the maj@k of k fresh samples, as pass@k is (arXiv 2107.03374 counts subsets in the same way).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

Same = Callable[[str, str], bool] | None
MOST = 1024  # samples of a problem that are counted: seconds of work there, and floats still hold the products


def classes(answers: Sequence[str | None], same: Same = None) -> list[list[int]]:
    """Positions of equal answers, classes in order of first appearance; None is in no class."""
    found: dict[str, list[int]] = {}
    home: dict[str, str] = {}  # an answer as written -> the first one that equals it
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        if answer not in home:
            equal = next((seen for seen in found if same(seen, answer)), None) if same else None
            home[answer] = answer if equal is None else equal
        found.setdefault(home[answer], []).append(i)
    return list(found.values())


def majority_vote(answers: Sequence[str | None], same: Same = None) -> str | None:
    """The modal answer; ties go to the one seen first, None abstains. `same` is the verifier's equality.

    Returns None when nobody answered.
    """
    voted = classes(answers, same)
    return answers[max(voted, key=len)[0]] if voted else None


def majority_at_k(answers: Sequence[str | None], solved: Sequence[bool], same: Same = None) -> np.ndarray:
    """maj@1 … maj@n of one problem; of its first `MOST` samples where it has more."""
    answers, solved = answers[:MOST], solved[:MOST]
    voted = classes(answers, same)
    sizes = sorted((len(members), sum(solved[i] for i in members)) for members in voted)
    return np.array(_shares(len(answers), tuple(sizes)))


@lru_cache(maxsize=4096)  # problems resemble each other: most are all right, or one against the rest
def _shares(n: int, sizes: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """sizes: (samples, right ones) of every class. Every factor of a class of n_j is scaled by 2^(−n_j/2)."""
    found = np.zeros(n + 1)
    for m in range(1, max((size for size, _ in sizes), default=0) + 1):
        able = [(size, right) for size, right in sizes if size >= m]
        # [t, s]: subsets of s samples with t classes at m, and the same weighted with the sum of their r_j / n_j
        ways, credit = np.zeros((2, len(able) + 1, n + 1))
        rest = n - sum(size for size, _ in able)  # in classes below m, or without an answer: free
        ways[0, : rest + 1] = [_choose(rest, c) for c in range(rest + 1)]
        for size, right in able:
            here = [_choose(size, c) for c in range(m + 1)]
            more_ways, more_credit = np.zeros_like(ways), np.zeros_like(credit)
            for c in range(m):
                more_ways[:, c:] += here[c] * ways[:, : n + 1 - c]
                more_credit[:, c:] += here[c] * credit[:, : n + 1 - c]
            more_ways[1:, m:] += here[m] * ways[:-1, : n + 1 - m]
            more_credit[1:, m:] += here[m] * (credit + ways * (right / size))[:-1, : n + 1 - m]
            ways, credit = more_ways, more_credit
        found += (credit[1:] / np.arange(1, len(able) + 1)[:, None]).sum(0)
    return tuple(float(found[k]) / _choose(n, k) for k in range(1, n + 1))


@lru_cache(maxsize=65_536)
def _choose(n: int, k: int) -> float:
    """C(n, k) · 2^(−n/2), which stays a float where C(n, k) does not."""
    return math.comb(n, k) / (1 << n // 2) / (math.sqrt(2) if n % 2 else 1)
