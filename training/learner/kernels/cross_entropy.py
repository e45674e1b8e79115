"""Log-probabilities of given tokens and entropies from logits, in two ways that share what they compute.

    log p_t = z_t − log Σ e^z     H = log Σ e^z − Σ p z     ∂ log p_t / ∂ z = [t] − p     z: logits over the temperature

What torch does step by step holds four matrices [c, vocabulary] on the way there and three on the way back, which is
the peak of an update with a small model. `gathered` holds three and one. `fused` has both ways compiled: a GPU reads
the logits twice and writes their gradient once, in the logits' own precision; the matrices between never exist.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


def gathered(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probabilities, entropies without gradient), float32 [c], of logits float32 [c, vocabulary], int64 [c]."""
    found: tuple[Tensor, Tensor] = _Gathered.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


def fused(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """As `gathered`, of logits in any precision that are still to be divided by the temperature."""
    found: tuple[Tensor, Tensor] = _Fused.apply(logits, targets, temperature)  # type: ignore[no-untyped-call]
    return found


class _Gathered(torch.autograd.Function):
    """The gradient is written over the log-probabilities that were kept: the backward pass runs once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logits: float32 [c, vocabulary]; targets: int64 [c]. Two float32 [c]."""
        every = logits.log_softmax(-1)
        entropy = every.exp().mul_(every).sum(-1).neg_()
        ctx.save_for_backward(every, targets)
        ctx.mark_non_differentiable(entropy)
        return every.gather(-1, targets[:, None])[:, 0], entropy

    @staticmethod
    def backward(ctx: Any, of_logprob: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """of_logprob: float32 [c]. The gradient of the logits, float32 [c, vocabulary]."""
        every, targets = ctx.saved_tensors
        of_logits = every.exp_().mul_(-of_logprob[:, None])
        of_logits.scatter_add_(-1, targets[:, None], of_logprob[:, None])
        return of_logits, None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprob, entropy, norm = _compiled(_there)(logits, targets, temperature)
        ctx.save_for_backward(logits, targets, norm)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, of_logprob: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        return _compiled(_back)(of_logprob, *ctx.saved_tensors, ctx.temperature), None, None


def _there(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies and log Σ e^z, float32 [c] each."""
    z = logits.float() / temperature
    top = z.amax(-1, keepdim=True)
    weights = (z - top).exp()
    total = weights.sum(-1)
    norm = total.log() + top[:, 0]
    entropy = norm - (weights * z).sum(-1) / total
    return z.gather(-1, targets[:, None])[:, 0] - norm, entropy, norm


def _back(of_logprob: Tensor, logits: Tensor, targets: Tensor, norm: Tensor, temperature: float) -> Tensor:
    """The gradient of the logits, [c, vocabulary] in their precision."""
    p = (logits.float() / temperature - norm[:, None]).exp()
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    of_logits = ((tokens == targets[:, None]).float() - p) * (of_logprob / temperature)[:, None]
    return of_logits.to(logits.dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Once for a vocabulary, chunks of any length; when first wanted, for importing the compiler takes seconds."""
    found: Callable[..., Any] = torch.compile(function)
    return found
