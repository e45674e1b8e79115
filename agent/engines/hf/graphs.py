"""Decoding steps as CUDA graphs: where each row gets one token, a GPU waits for launches and not for arithmetic.

A graph computes what was captured, at the same addresses. So its rows are the first of the cache (idle ones write into
the bin), rows and columns are rounded up to few sizes, and graphs are captured anew when what they read lies elsewhere:
after new weights (norms' gains are copies) and when the cache grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solostream.agent.engines.hf.cache import Feed, SlotCache
from solostream.agent.engines.hf.lean import LeanForward

ROWS = 8  # of the smallest graph
KEYS = 256  # columns are rounded up to a multiple of this, or of a quarter of their order of magnitude


@dataclass(frozen=True, slots=True)
class _Graph:
    feed: Feed  # what it reads
    graph: Any  # torch.cuda.CUDAGraph


class GraphedForward:
    """Computes what `inner` does, on its GPU."""

    def __init__(self, inner: LeanForward) -> None:
        self.inner = inner
        self.model, self.device, self.in_place = inner.model, inner.device, inner.in_place
        self._stream: Any = torch.cuda.Stream(self.device)
        self._logits = torch.empty(0)  # (slots, vocabulary), which every graph writes to and nobody keeps
        self._forget()

    def refresh(self) -> None:
        """The model's weights are new."""
        self.inner.refresh()
        self._forget()

    def _forget(self) -> None:
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._of: tuple[SlotCache, int] | None = None
        self._pool: Any = torch.cuda.graph_pool_handle()  # one for all: no two of them run at a time

    @torch.inference_mode()
    def __call__(self, batch: Feed, cache: SlotCache) -> Tensor:
        """Logits (rows, vocabulary) after each row's last token, to be used before the next call."""
        if batch.slots is not None or batch.tokens.shape[1] > 1:
            return self.inner(batch, cache)
        if self._of is None or self._of[0] is not cache or self._of[1] != cache.columns:
            self._forget()
            self._of = cache, cache.columns
        key = len(batch.tokens), batch.n_keys
        if key not in self._graphs:
            self._graphs[key] = self._captured(batch, cache)
        known = self._graphs[key]
        known.feed.tokens.copy_(batch.tokens)
        known.feed.positions.copy_(batch.positions)
        known.feed.columns.copy_(batch.columns)
        known.graph.replay()
        return self._logits[: key[0]]

    def _captured(self, batch: Feed, cache: SlotCache) -> _Graph:
        feed = Feed(batch.tokens.clone(), batch.positions.clone(), batch.columns.clone(), None, batch.n_keys)
        graph: Any = torch.cuda.CUDAGraph()
        now = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            # Once as it is: tables, workspaces and the cache's layers are made at their first use. What it writes, the
            # graph writes again.
            logits = self.inner(feed, cache)
            if len(self._logits) < cache.slots:
                self._logits = logits.new_empty(cache.slots, logits.shape[1])
            del logits
            # Of this thread alone: a learner in another one may ask for memory meanwhile.
            graph.capture_begin(self._pool, "thread_local")
            try:
                self._logits[: len(feed.tokens)].copy_(self.inner(feed, cache))
            finally:
                graph.capture_end()
        now.wait_stream(self._stream)
        return _Graph(feed, graph)


def rounded(rows: int, n_keys: int, cache: SlotCache) -> tuple[int, int]:
    """Rows and columns of the graph that has room for so many; never more than the cache has."""
    size = ROWS
    while size < rows:
        size *= 2
    step = max(KEYS, (1 << n_keys.bit_length() - 1) // 4)
    return min(size, cache.slots), min(-(-n_keys // step) * step, cache.columns - 1)
