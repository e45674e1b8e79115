"""The optimizer in the CPU's memory (ZeRO-Offload, arXiv 2101.06840, section 4): the device keeps a copy that computes.

Masters, moments and the sum of the gradients are float32 on the host, where torch's own fused AdamW steps. Each
gradient leaves the device as soon as the backward pass has it, so the device holds one at a time; after a step the
copy is written anew. docs/decisions.md says why it is neither torchao's CPUOffloadOptimizer nor FSDP2's policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class HostMasters:
    """Takes over the weights of `model`, which is float32 and on the host, and leaves a copy on `device` in `dtype`.

    named: the masters, float32, under the names of the model's parameters. The parameters stay the same objects.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.named: dict[str, Tensor] = {}
        self._pairs: list[tuple[Tensor, nn.Parameter]] = []
        # One gradient at a time leaves the device: room for the largest. A device writes to pinned memory at several
        # times the speed.
        largest = max((parameter.numel() for parameter in model.parameters()), default=0)
        self._landing = torch.empty(largest, dtype=dtype, pin_memory=device.type == "cuda")
        # A tied weight comes once, under its first name.
        for name, parameter in model.named_parameters():
            # The master is the weight as it was loaded; what stays in the model is a rounded copy on the device.
            master = nn.Parameter(parameter.data)
            parameter.data = master.data.to(device, dtype, copy=True)
            # Called when the backward pass is done with this weight: its gradient leaves the device at once.
            parameter.register_post_accumulate_grad_hook(_moves_to(master, self._landing))
            self.named[name] = master
            self._pairs.append((master, parameter))
        # What is no parameter goes along: positions keep their own precision.
        model.to(device)

    @torch.no_grad()
    def publish(self) -> None:
        """The masters of now become what computes."""
        for master, parameter in self._pairs:
            parameter.copy_(master, non_blocking=True)
        # The copies are under way while this returns, and the next step writes to the masters: wait for them.
        if self._pairs:
            _, first = self._pairs[0]
            if first.is_cuda:
                torch.cuda.synchronize(first.device)


def _moves_to(master: Tensor, landing: Tensor) -> Callable[[Tensor], None]:
    """Micro-batches add up on the host, in float32: halves would lose the small ones. `landing`: room on the host for
    one gradient in the precision that it has on the device, in which it crosses.
    """

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        arrived = landing[: parameter.numel()].view_as(parameter)
        arrived.copy_(parameter.grad)
        parameter.grad = None  # the device holds one gradient at a time
        if master.grad is None:
            master.grad = arrived.to(torch.float32, copy=True)
        else:
            master.grad.add_(arrived)

    return move
