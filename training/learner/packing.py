"""Packed batches: sequences laid end to end without padding, and attention that never crosses from one to the next.

A pack is sorted by length. Every layer but attention works on its T tokens as they lie; attention sees blocks of
sequences of nearly one length, padded on the right to the block's longest, so that the plain causal kernel (flash
where there is one) is exact without a mask: the cost is Σ length², never T².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "solostream_packed"  # its name among the attention functions of transformers
BLOCK_WASTE = 1.15  # a block's longest sequence is at most this times its shortest ...
BLOCK_SLACK = 4  # ... plus this many tokens


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """How the T tokens of a pack become padded blocks of P rows: `blocks` are (sequences, length) in order.

    rows: (gather, scatter); gather: int64 [P], the token of each row (the last of its sequence for padding), scatter:
    int64 [T], the row of each token. None when no block has padding: rows and tokens coincide.
    """

    blocks: tuple[tuple[int, int], ...]
    rows: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """One micro-batch. `members` are the places of its sequences in the list that was packed, shortest first.

    token_ids, position_ids: int64 [1, T]. rows: int64 [n], where each action token is predicted (one before it);
    targets: int64 [n], that token; segment: int64 [n], its sequence as a place in `members`.
    """

    members: list[int]
    token_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    targets: Tensor
    segment: Tensor
    layout: BlockLayout


def plan(lengths: Sequence[int], max_tokens_per_batch: int) -> list[list[int]]:
    """Micro-batches of at most `max_tokens_per_batch` tokens (a longer sequence goes alone), neighbours in length."""
    packs: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not packs or lengths[i] > room:
            packs.append([])
            room = max_tokens_per_batch
        packs[-1].append(i)
        room -= lengths[i]
    return packs


def pack(
    sequences: Sequence[tuple[np.ndarray, np.ndarray]], members: list[int], device: torch.device | str = "cpu"
) -> PackedBatch:
    """sequences: (token ids, action mask) of each; members: which to pack, as `plan` orders them.

    Raises ValueError when a first token is an action: nothing predicts it.
    """
    lengths = np.array([len(sequences[i][0]) for i in members])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([sequences[i][0] for i in members]).astype(np.int64)
    mask = np.concatenate([sequences[i][1] for i in members]).astype(bool)
    if mask[starts[:-1]].any():
        raise ValueError("the first token of a sequence is an action token: there is nothing to predict it from")
    places = np.flatnonzero(mask)
    segment = np.repeat(np.arange(len(members)), lengths)
    positions = np.arange(len(ids)) - starts[:-1][segment]

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return PackedBatch(
        members=members,
        token_ids=tensor(ids)[None],
        position_ids=tensor(positions)[None],
        rows=tensor(places - 1),
        targets=tensor(ids[places]),
        segment=tensor(segment[places]),
        layout=_layout(lengths, starts, segment, positions, device),
    )


def _layout(
    lengths: np.ndarray, starts: np.ndarray, segment: np.ndarray, positions: np.ndarray, device: torch.device | str
) -> BlockLayout:
    blocks: list[tuple[int, int]] = []
    gather, first_row = [], np.empty(len(lengths), np.int64)
    rows = first = 0
    while first < len(lengths):
        last = int(np.searchsorted(lengths, lengths[first] * BLOCK_WASTE + BLOCK_SLACK, side="right"))
        longest = int(lengths[last - 1])
        offsets = np.minimum(np.arange(longest)[None], lengths[first:last, None] - 1)  # padding repeats the last token
        gather.append((starts[first:last, None] + offsets).ravel())
        first_row[first:last] = rows + longest * np.arange(last - first)
        blocks.append((last - first, longest))
        rows += longest * (last - first)
        first = last
    if rows == len(segment):
        return BlockLayout(tuple(blocks), None)
    scatter = first_row[segment] + positions
    to = lambda array: torch.from_numpy(array).to(device)
    return BlockLayout(tuple(blocks), (to(np.concatenate(gather)), to(scatter)))


class _Pad(torch.autograd.Function):
    """[T, ...] -> [P, ...]. Padded rows get no gradient (a causal query never sees what comes after it)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.scatter = scatter
        return x.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad.index_select(0, ctx.scatter), None, None


class _Unpad(torch.autograd.Function):
    """[P, ...] -> [T, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scatter: Tensor) -> Tensor:
        ctx.scatter, ctx.shape = scatter, x.shape
        return x.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.new_zeros(ctx.shape).index_copy_(0, ctx.scatter, grad), None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: BlockLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query [1, heads, T, d], key and value [1, kv_heads, T, d].

    Raises NotImplementedError for what the causal kernel does not compute (soft-capped scores, attention sinks) and
    for architectures that do not hand on `layout`: the learner then takes the block-diagonal mask of transformers.
    """
    if layout is None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("packed attention needs the layout, and neither soft-capping nor sinks")
    repeat = query.shape[1] // key.shape[1]
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # [T, heads, d]
    if layout.rows is not None:
        rows = [_Pad.apply(x, *layout.rows) for x in rows]
    out, start = [], 0
    for n, length in layout.blocks:
        q, k, v = (x[start : start + n * length].unflatten(0, (n, length)).transpose(1, 2) for x in rows)
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        band = _band(length, sliding_window, q.device) if sliding_window and length > sliding_window else None
        block = F.scaled_dot_product_attention(q, k, v, attn_mask=band, is_causal=band is None, scale=scaling)
        out.append(block.transpose(1, 2).flatten(0, 1))
        start += n * length
    joined = torch.cat(out) if len(out) > 1 else out[0]
    return (joined if layout.rows is None else _Unpad.apply(joined, layout.rows[1]))[None], None


def _band(length: int, window: int, device: torch.device) -> Tensor:
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(ATTENTION, packed_attention)
