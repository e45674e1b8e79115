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
        every = logits.log_softmax(-1)  # [c, vocabulary]
        # In place: the products are written over the probabilities, so that there is no third matrix for them.
        products = every.exp().mul_(every)
        entropy = products.sum(-1).neg_()  # [c]
        # The log-probabilities alone are kept: probabilities follow from them on the way back.
        ctx.save_for_backward(every, targets)
        ctx.mark_non_differentiable(entropy)
        logprob = every.gather(-1, targets[:, None])[:, 0]  # [c]
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, of_logprob: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """of_logprob: float32 [c]. The gradient of the logits, float32 [c, vocabulary]."""
        every, targets = ctx.saved_tensors
        upstream = of_logprob[:, None]  # [c, 1]
        # −p of every token of the vocabulary, over what was kept ...
        of_logits = every.exp_().mul_(-upstream)
        # ... and 1 more at the token itself.
        of_logits.scatter_add_(-1, targets[:, None], upstream)
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
    z = logits.float() / temperature  # [c, vocabulary]
    # The largest logit is taken off before the exponential, which would overflow, and put back behind the logarithm.
    top = z.amax(-1, keepdim=True)  # [c, 1]
    weights = (z - top).exp()
    total = weights.sum(-1)  # [c]
    norm = total.log() + top[:, 0]

    # Σ p z, with p as the weights over their sum: the matrix p itself is never needed.
    mean_logit = (weights * z).sum(-1) / total
    entropy = norm - mean_logit
    of_targets = z.gather(-1, targets[:, None])[:, 0]
    return of_targets - norm, entropy, norm


def _back(of_logprob: Tensor, logits: Tensor, targets: Tensor, norm: Tensor, temperature: float) -> Tensor:
    """The gradient of the logits, [c, vocabulary] in their precision."""
    z = logits.float() / temperature  # [c, vocabulary]
    p = (z - norm[:, None]).exp()
    # Compared and not scattered: a comparison can be a part of the one kernel that writes the gradient.
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    is_target = (tokens == targets[:, None]).float()
    upstream = (of_logprob / temperature)[:, None]  # [c, 1]
    of_logits = (is_target - p) * upstream
    return of_logits.to(logits.dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Once for a vocabulary, chunks of any length; when first wanted, for importing the compiler takes seconds."""
    found: Callable[..., Any] = torch.compile(function)
    return found
