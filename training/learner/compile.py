"""`torch.compile` for the layers of a decoder: one graph that all of them share, for packs of any length.

Outside the matrix products a decoder moves bytes: norms, rotary positions, casts and gates in a dozen kernels a layer.
The layers are compiled one by one, not the model: they are alike, so the first one's graph serves them all, and what
stands around them (embedding, head, attention masks) stays as it is.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from solostream.errors import UserError


def compile_layers(model: Any) -> None:
    """Compile the decoder layers of `model` in place. Raises UserError where there is no list of layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    lists = [module for module in base.base_model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=None)
    if layers is None:
        raise UserError(f"learner.compile: {type(base).__name__} has no list of layers: set learner.compile = false")
    for layer in layers:
        layer.compile(dynamic=True)
