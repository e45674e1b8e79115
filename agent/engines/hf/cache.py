"""The KV cache of the HF engine: one slot an episode, preallocated, grown by doubling.

A layer's keys and values are (slots, heads, columns, head_dim). The last column is a bin: padding and idle rows write
there and nobody reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GROUPS, GROUP_ROWS = 4, 12  # of rows of about one length: at most so many, of at least so many rows
KEY_BLOCK = 16  # attention is over a multiple of this many columns


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Rows of a feed that attend to about as many keys: `rows`, places in the feed (None: all), of `slots` as there."""

    rows: Tensor | None
    slots: Tensor | None
    n_keys: int


@dataclass(frozen=True, slots=True)
class Feed:
    """One forward pass: the newest tokens of some slots, left-padded so that the last column is each row's last token.

    tokens, positions, columns: (rows, width) int64; `columns` is where keys are written. slots: (rows,), or None when
    row i is slot i, so that the cache is read without a copy. n_keys: how many columns any row attends to. fixed: all
    rows attend to so many, whatever they need: the shapes of a step do not depend on what is in it.
    """

    tokens: Tensor
    positions: Tensor
    columns: Tensor
    slots: Tensor | None
    n_keys: int
    fixed: bool = False

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(rows, 1, width, n_keys), 0 or -inf: a token sees itself and what came before it in its slot."""
        keys = torch.arange(self.n_keys, device=self.positions.device)
        seen = keys <= self.positions[:, :, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]

    def by_length(self) -> list[KeyGroup]:
        """The rows in groups, short ones first, where that is less to read than everybody's keys to the longest's."""
        rows, width = self.tokens.shape
        count = min(rows // GROUP_ROWS, GROUPS)
        everybody = KeyGroup(None, self.slots, self.n_keys)
        # On a GPU a group is a kernel launch more, which costs more than the keys.
        if width > 1 or count < 2 or self.fixed or self.tokens.is_cuda:
            return [everybody]
        groups = []
        for places in self.positions[:, 0].argsort().chunk(count):
            keys = int(self.positions[places[-1], 0]) + 1
            n_keys = min(-(-keys // KEY_BLOCK) * KEY_BLOCK, self.n_keys)
            groups.append(KeyGroup(places, places if self.slots is None else self.slots[places], n_keys))
        # A group is copied together before it is read; so is everybody, unless row i is slot i.
        reads = 1 if self.slots is None else 2
        grouped = 2 * sum(len(group.slots) * group.n_keys for group in groups if group.slots is not None)
        return groups if grouped < reads * rows * self.n_keys else [everybody]


def feed(
    ids: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    rows: np.ndarray,
    n_keys: int,
    bin_column: int,
    device: torch.device,
    fixed: bool = False,
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
        fixed=fixed,
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

    def write(self, layer: int, batch: Feed, keys: Tensor, values: Tensor) -> None:
        """The newest keys and values of all rows, (rows, heads, width, head_dim) each."""
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
        for cached, new in zip(self._layers[layer], (keys, values), strict=True):
            cached[slots[:, None], :, batch.columns] = new.transpose(1, 2)

    def read(self, layer: int, slots: Tensor | None, rows: int, n_keys: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (rows, heads, n_keys, head_dim) each, of `slots`; None: the first `rows`, without a copy."""
        keys, values = (
            cached[:rows, :, :n_keys] if slots is None else cached[:, :, :n_keys].index_select(0, slots)
            for cached in self._layers[layer]
        )
        return keys, values
