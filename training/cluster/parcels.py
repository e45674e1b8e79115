"""Weights on their way to processes on any machine: plain arrays, which Ray's object store keeps without a copy.

Each process of a machine reads the same memory, so the bytes are written once, however many replicas there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from solostream.agent.engine import Weights

# name -> (dtype, array), or the name of a weight that is the same tensor; bfloat16, which numpy has not, as int16
Parcel = dict[str, tuple[str, np.ndarray] | str]


def pack(weights: Weights, dtype: str | None = None) -> Parcel:
    """dtype: of what is sent ("bfloat16"): that of the sampler, which would round to it anyway; None: as they are."""
    parcel: Parcel = {}
    known: dict[tuple[int, torch.Size], str] = {}
    for name in weights:
        tensor = weights[name].detach()
        place = (tensor.data_ptr(), tensor.shape)
        # A tied head. What merging makes may lie where another such was freed; read again, it is made anew elsewhere.
        if tensor.numel() and place in known and weights[known[place]].data_ptr() == tensor.data_ptr():
            parcel[name] = known[place]
            continue
        known[place] = name
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, dtype))
        plain = tensor.cpu().contiguous()
        array = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
        parcel[name] = (str(plain.dtype).removeprefix("torch."), array.numpy())
    return parcel


def unpack(parcel: Parcel) -> dict[str, Any]:
    """The tensors; they share the arrays' memory, which may be read-only."""
    tensors: dict[str, Any] = {}
    for name, packed in parcel.items():
        if isinstance(packed, str):
            tensors[name] = tensors[packed]
            continue
        dtype, array = packed
        tensors[name] = _shared(array).view(getattr(torch, dtype))
    return tensors


def n_bytes(parcel: Parcel) -> int:
    """What travels."""
    return sum(packed[1].nbytes for packed in parcel.values() if not isinstance(packed, str))


def _shared(array: np.ndarray) -> torch.Tensor:
    """torch warns of memory that it must not write; who gets these only reads."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
