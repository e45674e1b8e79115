"""Muon (kellerjordan.github.io/posts/muon): momentum, then each matrix update replaced by its nearest orthogonal one.

The orthogonalisation is five quintic Newton-Schulz steps; matrices of one shape are stacked and go through together.
The step is scaled by √max(1, rows/columns).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from solostream.training.cluster.rank_sharding import whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """[m, rows, columns] -> the same shape, singular values near 1. bfloat16 on GPU, else as it comes."""
    found: Tensor = stack.bfloat16() if stack.is_cuda else stack
    # Wide, so that the Gram matrix is the smaller of the two that there are.
    tall = found.size(-2) > found.size(-1)
    found = found.mT if tall else found
    # The iteration converges for singular values in (0, 1]: the Frobenius norm bounds the largest.
    found = found / (found.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(steps):
        # a·X + b·(XXᵀ)X + c·(XXᵀ)²X moves every singular value along the same odd polynomial.
        gram = found @ found.mT  # [m, rows, rows]
        polynomial = cubic * gram + quintic * gram @ gram
        found = linear * found + polynomial @ found
    if tall:
        found = found.mT
    return found.to(stack.dtype)


def _orthogonal(updates: list[Tensor]) -> list[Tensor]:
    """Of matrices of one shape. Where each rank has a share of every matrix, matrix i is made whole for rank i % ranks,
    which orthogonalises it and hands the shares back.
    """
    first: Any = updates[0]
    mesh = getattr(first, "device_mesh", None)
    if mesh is None:
        return list(orthogonalise(torch.stack(updates)))
    from torch.distributed.tensor import distribute_tensor

    rank = mesh.get_rank()
    ranks = mesh.size()
    # Every rank takes part in making each matrix whole; those of others are let go again at once.
    own: list[Tensor] = []
    for i, update in enumerate(updates):
        complete = whole(update)
        if i % ranks == rank:
            own.append(complete)
    done = orthogonalise(torch.stack(own)) if own else own

    # And in handing each one's shares back: a blank stands for what another rank sends.
    blank = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    shares: list[Tensor] = []
    for i in range(len(updates)):
        sender = i % ranks
        sent = done[i // ranks] if sender == rank else blank
        share = distribute_tensor(sent, mesh, first.placements, src_data_rank=sender)
        shares.append(share)
    return shares


class Muon(torch.optim.Optimizer):
    """For weight matrices only; weight decay is decoupled."""

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for matrix in group["params"]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix; those of one shape are orthogonalised together. closure: not supported."""
        for group in self.param_groups:
            # Stacked by shape: a few large products in place of many small ones.
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for (rows, columns), matrices in shapes.items():
                # The momentum of each, looking one step ahead (Nesterov).
                updates = []
                for matrix in matrices:
                    state = self.state[matrix]
                    gradient = matrix.grad
                    assert gradient is not None
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(torch.lerp(gradient, state["momentum"], group["momentum"]))  # Nesterov

                # Orthogonal, a tall matrix has smaller entries than a square one with as many columns: made up for.
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                shrink = 1 - group["lr"] * group["weight_decay"]
                for matrix, update in zip(matrices, _orthogonal(updates), strict=True):
                    matrix.mul_(shrink)
                    matrix.sub_(update, alpha=scale)
