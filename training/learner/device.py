"""Which device a run trains and samples on, in which precision, and its decoder layers compiled.

Outside the matrix products a decoder moves bytes: norms, rotary positions, casts and gates in a dozen kernels a layer.
The layers are compiled one by one, not the model: they are alike, so the first one's graph serves them all, for packs
of any length, and what stands around them (embedding, head, attention masks) stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from solostream.agent.engines.hf.device import dtype_on, has_bfloat16
from solostream.errors import UserError
from solostream.training.cluster.rank_sharding import base_of, decoder_layers
from solostream.training.config import ModelConfig


def device_named(name: str) -> torch.device:
    """That device, also where it is not here; auto: the first GPU, or the CPU. Raises UserError for what is none."""
    # Most users have one machine and one device: they need not say it.
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'model.device = "{name}" is no device: "auto", "cpu", "cuda" or "cuda:1"') from None
    # Torch knows more devices than anybody has tried this trainer on.
    if device.type not in ("cpu", "cuda"):
        raise UserError(f'model.device = "{name}" is not supported: "auto", "cpu", "cuda" or "cuda:1"')
    return device


def device_of(name: str) -> torch.device:
    """The device that `model.device` names; auto: the first GPU, or the CPU. Raises UserError when it is not there."""
    device = device_named(name)
    if device.type == "cpu":
        return device
    # The same wish fails for two reasons, which need different remedies.
    if not torch.cuda.is_available():
        built = "this torch is built for CPUs" if torch.version.cuda is None else "no GPU answers (see nvidia-smi)"
        raise UserError(f'model.device = "{name}", but {built}: set model.device = "cpu", or install torch for CUDA')
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'model.device = "{name}", but there are {torch.cuda.device_count()} GPUs, counted from 0')
    return torch.device("cuda", device.index or 0)


def describe(device: torch.device) -> str:
    """One line: what computes, and the memory that it has."""
    if device.type == "cpu":
        return f"device cpu ({torch.get_num_threads()} threads)"
    free, total = torch.cuda.mem_get_info(device)
    return f"device {device} ({torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free)"


def base_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Of weights that are not trained. Raises UserError for bfloat16 on a GPU that has none."""
    return dtype_on(device, _wide(config), "model.dtype")


def _wide(config: ModelConfig) -> str:
    """Of what 4 bits leave out, and of what they are computed in."""
    return "bfloat16" if config.dtype == "4bit" else config.dtype


def sampler_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Of the weights that sample. Raises UserError for bfloat16 on a GPU that has none."""
    # Sampling moves weights more than it computes: half the bytes are nearly half the time.
    automatic = "bfloat16" if has_bfloat16(device) else _wide(config)
    wanted = automatic if config.sampler_dtype == "auto" else config.sampler_dtype
    return dtype_on(device, wanted, "model.sampler_dtype")


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Of the learner's computation. Raises UserError for bfloat16 on a GPU that has none."""
    # Of matrix products alone: the weights and all that follows the logits stay float32.
    automatic = "bfloat16" if has_bfloat16(device) else "float32"
    wanted = automatic if name == "auto" else name
    return dtype_on(device, wanted, "learner.dtype")


def upload(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """`array` on `device`, without waiting for what a GPU still computes (from memory that may be paged it would)."""
    tensor = torch.from_numpy(array)
    # Only from pinned memory can a GPU fetch by itself, while the host goes on.
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def cast(model: Any, dtype: torch.dtype) -> None:
    """The parameters alone, in place: rounded to half precision, rotary frequencies would move far positions."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def compile_layers(model: Any) -> None:
    """Compile the decoder layers of `model` in place. Raises UserError where there is no list of layers."""
    layers = decoder_layers(model)
    if layers is None:
        name = type(base_of(model)).__name__
        raise UserError(f"learner.compile: {name} has no list of layers: set learner.compile = false")
    # Dynamic: packs have as many tokens as their sequences happen to have.
    for layer in layers:
        layer.compile(dynamic=True)
