"""Attention within the sequences of a pack, and never across: an attention function for transformers.

On a GPU in half precision one kernel takes all sequences as they lie (`torch.nn.attention.varlen`, where this torch has
it). Elsewhere attention sees blocks of sequences of nearly one length, padded on the right to the block's longest, so
that the plain causal kernel (flash where there is one) is exact without a mask. The cost is Σ length², never T².
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

try:
    from torch.nn.attention import varlen as _varlen

    varlen_attn: Callable[..., Any] | None = _varlen.varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

ATTENTION = "solostream_packed"  # its name among the attention functions of transformers
# What this torch's kernel can be told; without a scale and a window it does not compute what models ask for.
_TOLD = set(inspect.signature(varlen_attn).parameters) if varlen_attn else set()
VARLEN = {"scale", "window_size"} <= _TOLD


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """Where the sequences of a pack of T tokens lie.

    borders: int32 [sequences + 1], where each begins, and T. longest: tokens of the longest. blocks: (sequences,
    length) of padded blocks of P rows in all, in order. rows: (gather, scatter); gather: int64 [P], the token of each
    row (the last of its sequence for padding), scatter: int64 [T], the row of each token. None when no block has
    padding: rows and tokens coincide.
    """

    blocks: tuple[tuple[int, int], ...]
    rows: tuple[Tensor, Tensor] | None
    borders: Tensor
    longest: int


class _Pad(torch.autograd.Function):
    """[T, ...] -> [P, ...]. Padded rows get no gradient (a causal query never sees what comes after it)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.scatter = scatter
        return x.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.scatter), None, None


class _Unpad(torch.autograd.Function):
    """[P, ...] -> [T, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scatter: Tensor) -> Tensor:
        ctx.scatter, ctx.shape = scatter, x.shape
        return x.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.shape).index_copy_(0, ctx.scatter, grad), None


# torch leaves `apply` without annotations
_pad: Callable[[Tensor, Tensor, Tensor], Tensor] = _Pad.apply
_unpad: Callable[[Tensor, Tensor], Tensor] = _Unpad.apply


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

    # Norms of queries and keys leave float32 behind: in half precision there are half the bytes to move.
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = (x.to(dtype) for x in (query, key, value))

    # Where there is a kernel for sequences of any lengths, nothing needs to be padded.
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and VARLEN:
        return _without_padding(query, key, value, layout, scaling, sliding_window), None

    # Tokens as rows, and each block of sequences padded to its longest.
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # [T, heads, d]
    if layout.rows is not None:
        rows = [_pad(x, *layout.rows) for x in rows]  # [P, heads, d]

    joined = _of_blocks(rows, layout.blocks, query.shape[1] // key.shape[1], scaling, sliding_window)  # [P, heads, d]

    # Back to tokens as they lie, without the padding.
    if layout.rows is not None:
        _, scatter = layout.rows
        joined = _unpad(joined, scatter)  # [T, heads, d]
    return joined[None], None


def _of_blocks(
    rows: Sequence[Tensor],
    blocks: Sequence[tuple[int, int]],
    repeat: int,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Queries, keys and values, [P, heads, d] each -> [P, heads, d]. repeat: query heads that share a key head.

    A block is a batch of its own, so that nothing can look from one sequence into another; a query never sees the
    padding, which comes after it.
    """
    outputs: list[Tensor] = []
    start = 0
    for count, length in blocks:
        end = start + count * length
        q, k, v = (
            x[start:end].unflatten(0, (count, length)).transpose(1, 2) for x in rows
        )  # [count, heads, length, d]
        # A CPU's kernel reads one key head for all query heads that share it, the others need copies.
        shared = repeat > 1 and not q.is_cuda
        if repeat > 1 and not shared:
            k = k.repeat_interleave(repeat, 1)
            v = v.repeat_interleave(repeat, 1)

        # Only where the window is shorter than the block does it need a mask, which the fast kernels do not take.
        band = _band(length, sliding_window, q.device) if sliding_window and length > sliding_window else None
        causal = band is None
        block = F.scaled_dot_product_attention(
            q, k, v, attn_mask=band, is_causal=causal, scale=scaling, enable_gqa=shared
        )
        outputs.append(block.transpose(1, 2).flatten(0, 1))  # [count · length, heads, d]
        start = end
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _without_padding(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """[1, T, heads, d] by the kernel for sequences of any lengths."""
    # The kernel wants tokens as rows, and where each sequence begins.
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
    grouped = {"enable_gqa": True} if "enable_gqa" in _TOLD else {}
    if not grouped and q.shape[1] != k.shape[1]:
        # This torch's kernel cannot share a key head among query heads: each gets a copy.
        repeat = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(repeat, 1)
        v = v.repeat_interleave(repeat, 1)

    # Queries and keys are the same tokens: one pair of borders and of lengths for both.
    borders = (layout.borders, layout.borders)
    longest = (layout.longest, layout.longest)
    # A window counts the query's own key, the kernel only those to the left of it; -1 is all of them.
    left = window - 1 if window else -1
    assert varlen_attn is not None
    out = varlen_attn(q, k, v, *borders, *longest, scale=scaling, window_size=(left, 0), **grouped)
    assert isinstance(out, Tensor)
    return out[None]


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """bool [length, length]: which keys a query sees, none behind it and none from before its window."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None]  # [queries, keys]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(ATTENTION, packed_attention)
