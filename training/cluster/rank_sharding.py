"""A model shared out among ranks by torch's FSDP2 (`fully_shard`), and the way back to whole tensors.

Each decoder layer is made whole when its turn comes, and let go again behind it; embedding, last norm and head are the
root's. Gradients are summed over the ranks: the weights of a loss are those of the whole batch already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solostream.errors import UserError
from solostream.training.cluster.rank_group import RankGroup


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The layers of a causal language model, plain or with adapters; None where it has no list of them."""
    base = base_of(model)
    lists = [module for module in base.base_model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=None)


def base_of(model: Any) -> Any:
    """The model of transformers inside `model`, which may be one of peft's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def refuse_unshardable(model: Any) -> None:
    """Raises UserError for what FSDP2 cannot share out. The model may be without weights (on torch's "meta")."""
    name = type(base_of(model)).__name__
    if getattr(base_of(model).config, "quantization_config", None) is not None:
        raise UserError(f"{name} is quantized, which cannot be sharded: set cluster.learners = 1, or take full weights")
    if decoder_layers(model) is None:
        raise UserError(f"{name} has no list of layers to share out among ranks: set cluster.learners = 1")
    odd = [key for key, tensor in model.named_parameters() if tensor.ndim == 0 or not tensor.is_floating_point()]
    if odd:
        raise UserError(
            f"{odd[0]} of {name} is a single number or no floating-point tensor, which FSDP2 cannot share out: "
            "set cluster.learners = 1"
        )


def shard(model: Any, group: RankGroup) -> None:
    """Share `model` out, in place; nothing for one rank, or where it is done. Raises UserError."""
    if group.world == 1:
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard

    base = base_of(model)
    if isinstance(base, FSDPModule):
        return
    refuse_unshardable(model)
    layers = decoder_layers(model)
    assert layers is not None
    for part in (*layers, base):
        fully_shard(part, mesh=group.mesh, reshard_after_forward=True)
    for part in base.modules():
        if isinstance(part, FSDPModule):  # each for itself: neither setting goes down to the parts of a part
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank has a share of it (torch's DTensor, which is not imported to ask this)."""
    return hasattr(tensor, "full_tensor")


def as_method(model: Any, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which calls parts of `model`; of a sharded one as its method `name`, around which torch makes the
    root's weights whole as it does around `forward`.
    """
    if not is_sharded(next(model.parameters())):
        return function
    from torch.distributed.fsdp import register_fsdp_forward_method

    setattr(model, name, function)
    register_fsdp_forward_method(model, name)
    found: Callable[..., Any] = getattr(model, name)
    return found


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be shared out; then every rank must ask for it."""
    shared: Any = tensor
    return shared.full_tensor() if is_sharded(tensor) else tensor


def whole_tensors(
    weights: Mapping[str, Tensor], group: RankGroup, dtype: torch.dtype | None = None, without: Collection[str] = ()
) -> dict[str, Tensor]:
    """Every tensor whole, in CPU memory and of `dtype`, at the first rank; at the others nothing.

    One that is all that already is handed on, not copied.
    """
    found = {}
    for name in weights:
        if name in without:
            continue
        one = whole(weights[name])  # at a time: adapters are merged as they are asked for
        if group.first:
            found[name] = one.to("cpu", dtype)
    return found


@torch.no_grad()
def fill(target: Tensor, source: Tensor) -> None:
    """target ← source, in place; a target that is shared out takes its share of a whole source."""
    if is_sharded(target) and not is_sharded(source):
        from torch.distributed.tensor import distribute_tensor

        like: Any = target
        there = source.to(target.device)
        source = distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
    target.copy_(source)


def frozen_copy(model: Any, group: RankGroup, wrap: Any) -> Any:
    """Another model of the weights of now, without gradients. wrap: what turns a plain model into one like `model`.

    One process shares with the copy what is not trained. A sharded model cannot be copied as an object: one of its
    shape is built without weights, shared out alike, and takes them over, each rank its own.
    """
    if group.world == 1:
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        return copy.deepcopy(model, shared).requires_grad_(False)
    base = base_of(model)
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.device("meta"):
        twin = wrap(type(base)(copy.deepcopy(base.config)))
        for name, parameter in twin.named_parameters():
            parameter.data = parameter.data.to(now[name].dtype)
    shard(twin, group)
    twin.to_empty(device=next(model.parameters()).device)
    with torch.no_grad():
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            tensor.copy_(now[name])
    return twin.requires_grad_(False).eval()
