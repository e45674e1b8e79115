"""The KV cache of the HF engine: one slot an episode, preallocated, grown by doubling.

A layer's keys and values are (slots, heads, columns, head_dim). The last column is a bin: padding and idle rows write
there and nobody reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Feed:
    """One forward pass: the newest tokens of some slots, left-padded so that the last column is each row's last token.

    tokens, positions, columns: (rows, width) int64; `columns` is where keys are written. slots: (rows,), or None when
    row i is slot i, so that the cache is read without a copy. n_keys: how many columns any row attends to.
    """

    tokens: Tensor
    positions: Tensor
    columns: Tensor
    slots: Tensor | None
    n_keys: int

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(rows, 1, width, n_keys), 0 or -inf: a token sees itself and what came before it in its slot."""
        keys = torch.arange(self.n_keys, device=self.positions.device)
        seen = keys <= self.positions[:, :, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


def feed(
    ids: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    rows: np.ndarray,
    n_keys: int,
    bin_column: int,
    device: torch.device,
) -> Feed:
    """Tokens `start[i]:end[i]` of slot `rows[i]`; a row with start == end is padding only. ids: (slots, length)."""
    width = max(1, int((end - start).max()))
    positions = end[:, None] - width + np.arange(width)
    padding = positions < start[:, None]
    positions[padding] = 0
    columns = np.where(padding, bin_column, positions)

    def to(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    dense = len(rows) == rows[-1] + 1
    return Feed(
        tokens=to(ids[rows[:, None], positions]),
        positions=to(positions),
        columns=to(columns),
        slots=None if dense else to(rows),
        n_keys=n_keys,
    )


class SlotCache:
    """Keys and values of every layer, made when a layer first writes."""

    def __init__(self, slots: int, columns: int) -> None:
        self.slots, self.columns = slots, columns
        self._layers: list[tuple[Tensor, Tensor]] = []

    @property
    def bin_column(self) -> int:
        """The last column of every slot, where padding writes: nothing attends to it."""
        return self.columns - 1

    def grow(self, columns: int) -> None:
        """Widen to at least `columns` usable columns, keeping what is cached."""
        if columns < self.columns:
            return
        while self.columns <= columns:
            self.columns *= 2
        for i, (keys, values) in enumerate(self._layers):
            wide = []
            for old in (keys, values):
                new = old.new_zeros(old.shape[0], old.shape[1], self.columns, old.shape[3])
                new[:, :, : old.shape[2]] = old
                wide.append(new)
            self._layers[i] = (wide[0], wide[1])

    @torch.inference_mode()
    def copy(self, source: int, target: int, columns: int) -> None:
        """The first columns of a slot, to another one."""
        for layer in self._layers:
            for cached in layer:
                cached[target, :, :columns] = cached[source, :, :columns]

    def update(self, layer: int, batch: Feed, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (rows, heads, width, head_dim); returns what rows may attend to, (rows, heads, n_keys, head_dim)."""
        if layer == len(self._layers):
            shape = (self.slots, keys.shape[1], self.columns)
            self._layers.append(
                (
                    keys.new_zeros(*shape, keys.shape[3]),
                    values.new_zeros(*shape, values.shape[3]),
                )  # zeros: NaN would spread
            )
        rows = len(keys)
        slots = batch.slots if batch.slots is not None else torch.arange(rows, device=keys.device)
        read = []
        for cached, new in zip(self._layers[layer], (keys, values), strict=True):
            cached[slots[:, None], :, batch.columns] = new.transpose(1, 2)
            chosen = cached[:rows] if batch.slots is None else cached.index_select(0, batch.slots)
            read.append(chosen[:, :, : batch.n_keys])
        return read[0], read[1]
