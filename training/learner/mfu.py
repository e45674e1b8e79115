"""Model FLOPs utilisation: what the model needs, over what the device could have done in that time.

    FLOPs = c·(N·T + V·h·A) + 6·L·d·Σ l²        MFU = FLOPs / (seconds · peak)

N: weights of the layers' matrices (no embeddings, no head), T: tokens, V·h: the head, applied to the A action tokens
only; L layers of attention width d = heads · head size, over causal sequences of length l (half of 4·d·l² forward).
c = 6 a weight and token where weights are trained (2 forward, 4 backward), 4 with frozen ones under adapters;
attention has no weights: 3 times its forward pass. Recomputed and rescored passes do not count, as in PaLM (arXiv
2204.02311, App. B). The peak is the dense bfloat16 one whatever the computation's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from solostream.agent.engines import four_bit
from solostream.agent.trajectory import Trajectory

# Part of `torch.cuda.get_device_name()` -> dense bfloat16 FLOP/s, from the makers' data sheets; the first match counts.
PEAKS: dict[str, float] = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model costs FLOPs; `trained`: its own weights get gradients (not so under adapters)."""

    body: int
    head: int
    layers: int
    width: int
    trained: bool = True


def flops(shape: Shape, lengths: Sequence[int], action_tokens: int) -> float:
    """Of one forward and backward pass over sequences of `lengths` tokens."""
    # The lengths enter attention squared, and the matrices once.
    a_weight = 6 if shape.trained else 4  # FLOPs a weight and token
    matrices = a_weight * (shape.body * sum(lengths) + shape.head * action_tokens)
    attention = 6 * shape.layers * shape.width * sum(length * length for length in lengths)
    return float(matrices + attention)


def peak(device_name: str) -> float | None:
    """None for a device that the table does not have."""
    return next((value for name, value in PEAKS.items() if name in device_name), None)


def peak_of(device: torch.device, devices: int = 1) -> float | None:
    """FLOP/s of so many of them; None for what the table does not have, and on a CPU."""
    if device.type != "cuda":
        return None
    # An unknown device has no utilisation: a guessed peak would make the number worthless where it matters.
    one = peak(torch.cuda.get_device_name(device))
    return None if one is None else devices * one


def shape_of(model: Any, *, adapters: bool) -> Shape:
    """Of a causal language model of transformers, without the adapters' own small matrices."""
    config = model.config.get_text_config()
    # By identity: a tied head is the embedding itself, and is counted as the head alone.
    head = model.get_output_embeddings().weight
    outside = {id(head), id(model.get_input_embeddings().weight)}
    # Matrices of the layers alone: embeddings are looked up, and norms and biases cost next to nothing.
    body = sum(
        four_bit.size(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in outside and "lora_" not in name
    )
    # Heads may be wider than their share of the hidden size; most models do not say.
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        body=body,
        head=head.numel(),
        layers=config.num_hidden_layers,
        width=config.num_attention_heads * head_size,
        trained=not adapters,
    )


def throughput(
    used: Sequence[Trajectory], passes: int, seconds: float, shape: Shape, peak_flops: float | None
) -> dict[str, float]:
    """`tokens`, `tokens_per_s`, and `mfu` where the peak of the hardware is known: of what was trained on."""
    # Of segments: that is what the model saw at once, and what attention was computed over.
    lengths = [end - start for trajectory in used for start, end in trajectory.segments]
    tokens = passes * sum(lengths)
    metrics = {"tokens": float(tokens), "tokens_per_s": tokens / seconds}
    # The head is applied to what the policy said; to what it read it would be computed for nothing.
    if peak_flops:
        action_tokens = sum(trajectory.n_action_tokens for trajectory in used)
        needed = passes * flops(shape, lengths, action_tokens)
        metrics["mfu"] = needed / (seconds * peak_flops)
    return metrics
