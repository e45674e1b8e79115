"""Sampling a batch in one go, each row from its own counter-based stream.

The token at position n of a request's ledger is chosen by the uniform number hash(seed, n) through the inverse of the
cumulative distribution: it does not depend on neighbours in the batch, nor on how often a generator was called before.
"""

from __future__ import annotations

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
NUCLEUS = 1024  # logits a row that are sorted first; a nucleus is seldom wider


def uniforms(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), float32, one a (seed, counter), both uint64: splitmix64 (Steele et al. 2014) twice."""
    bits = _mix(_mix(seeds + _GOLDEN) + (counters + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(41)).astype(np.float32) * np.float32(2.0**-23)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def sample(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token and its logprob for each row of `logits` (rows, vocabulary); the other arguments are (rows,).

    The logprob is under the distribution that was sampled from: after temperature, top-k and top-p. A greedy row
    (temperature 0) reports its token under the unscaled softmax.
    """
    logits = logits.float()
    greedy = temperature == 0
    if not bool((temperature == 1).all()):
        logits = logits / torch.where(greedy, 1.0, temperature)[:, None]
    if bool(((top_k > 0) | (top_p < 1)).any()):
        logits = torch.where(_kept(logits, top_k, top_p) | greedy[:, None], logits, -torch.inf)
    probabilities = logits.softmax(-1)
    cumulative = probabilities.cumsum(-1)
    # `right` skips entries of probability 0; 23 random bits keep the product strictly under the total.
    tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    if bool(greedy.any()):
        tokens = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], probabilities.gather(1, tokens)[:, 0].log()


def _kept(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """(rows, vocabulary) bool: top-k first, then the smallest set of the rest whose probability reaches top-p.

    Of equal logits the one with the lower id comes first. The few largest are sorted, not the vocabulary: that is
    enough unless a row's nucleus is wider than them, or equal logits lie across their border.
    """
    size = logits.shape[1]
    k = torch.where(top_k > 0, top_k, size).clamp(max=size)
    filtered = k[(top_k > 0) | (top_p < 1)]
    few = min(int(filtered.max()), NUCLEUS)
    keep = _kept_of_few(logits, k, top_p, few) if few < size else None
    if keep is not None:
        return keep
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, _reach(ordered, ordered, k, top_p)[0])


def _kept_of_few(logits: torch.Tensor, k: torch.Tensor, top_p: torch.Tensor, few: int) -> torch.Tensor | None:
    """`_kept` from the `few` largest logits of each row; None where they do not decide it."""
    whole = (k >= logits.shape[1]) & (top_p >= 1)  # rows without a filter
    ordered, order = logits.topk(few + 1, dim=-1)
    if bool(((ordered[:, few - 1] == ordered[:, few]) & ~whole).any()):
        return None
    order, places = order[:, :few].sort(dim=-1)  # by id, then stably by size: equal ones in the order of their ids
    ordered, places = ordered[:, :few].gather(1, places).sort(dim=-1, descending=True, stable=True)
    keep, enough = _reach(ordered, logits, k, top_p)
    if not bool((enough | whole).all()):
        return None
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order.gather(1, places), keep)
    return kept | whole[:, None]


def _reach(
    ordered: torch.Tensor, logits: torch.Tensor, k: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the `ordered` logits (rows, few) stay, and whether no logit beyond them could: (rows, few), (rows,)."""
    few = ordered.shape[1]
    keep = torch.arange(few, device=ordered.device) < k[:, None]
    # Probabilities among the k largest; among all logits where k is beyond the few.
    probabilities = torch.where(keep, ordered, -torch.inf).softmax(-1)
    beyond = (k > few)[:, None]
    if bool(beyond.any()):
        probabilities = torch.where(beyond, (ordered - logits.logsumexp(-1, keepdim=True)).exp(), probabilities)
    before = probabilities.cumsum(-1) - probabilities
    # A token stays while the mass before it is under top-p: the first always does.
    keep &= (before < top_p[:, None]) | (top_p >= 1)[:, None]
    keep[:, 0] = True
    return keep, (k <= few) | (before[:, -1] + probabilities[:, -1] >= top_p)
