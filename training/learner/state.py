"""What a checkpoint holds of a learner, and how it is taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solostream.errors import UserError
from solostream.training.learner.optimizer import Optimizer


def state_of(
    model: nn.Module, optimizer: Optimizer, reference: nn.Module | None, *, adapters: bool, weights: bool, base: bool
) -> dict[str, Any]:
    """The optimizer with its step, what is trained, the base under adapters, and the reference where there is one.

    weights, base: False leaves out what folders hold: the model that is trained whole, the base under adapters.
    """
    state: dict[str, Any] = {"optimizer": optimizer.state_dict()}
    if weights or adapters:
        state["model"] = _parameters(model, trained=True)
    if base and adapters:
        state["base"] = _parameters(model, trained=False)
    if reference is not None:
        # Under adapters it shares the base.
        state["reference"] = {n: p for n, p in reference.named_parameters() if not adapters or ".lora_" in n}
    return state


@torch.no_grad()
def load_state(
    state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, reference: nn.Module | None, *, adapters: bool
) -> None:
    """In place. Raises UserError when the state is of another model or another configuration."""
    if "model" in state:
        _copy(state["model"], _parameters(model, trained=True))
    elif adapters:
        raise UserError("the checkpoint has no adapters: resume with the learner.lora that it was written with")
    if "base" in state:
        _copy(state["base"], _parameters(model, trained=False))
    if reference is not None:
        if "reference" not in state:
            raise UserError("the checkpoint has no KL reference; resume with the kl_coef it was written with")
        own = dict(reference.named_parameters())
        _copy(state["reference"], {n: p for n, p in own.items() if not adapters or ".lora_" in n})
    optimizer.load_state_dict(state["optimizer"])


def _parameters(model: nn.Module, *, trained: bool) -> dict[str, Tensor]:
    """The trained parameters, or the frozen ones; each shares its memory with the model."""
    return {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad == trained}


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if source.keys() != target.keys():
        odd = sorted(source.keys() ^ target.keys())[:3]
        raise UserError(
            f"the checkpoint belongs to another model: {', '.join(odd)} do not match; resume with the same one"
        )
    # In place: the optimizer and an engine of this process hold these very tensors.
    for name, tensor in target.items():
        tensor.copy_(source[name])
