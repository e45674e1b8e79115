"""Supervised steps of a learner: cross-entropy on the masked tokens of demonstrations, the mean over all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from solostream.errors import UserError
from solostream.training.learner.guards import memory_advice
from solostream.training.learner.learner import Learner
from solostream.training.learner.packing import MaskedTokens


def sft_step(learner: Learner, sequences: Sequence[MaskedTokens], step: int | None = None) -> dict[str, float]:
    """One optimizer step; loss (in nats a token), grad_norm, lr and tokens_per_s.

    step: its place among all that were planned; default: the one after the step before. The schedule of the rate ends
    as many steps earlier as were left out.

    Raises UserError for a gradient that is not finite (the step is not taken), and with a token budget to try when
    memory ran out.
    """
    started = time.perf_counter()
    # One denominator for all packs: their gradients only add up, however the batch is cut.
    total = _masked_tokens(sequences)
    loss = torch.zeros((), device=learner.scorer.device)
    learner.optimizer.zero()  # of a step that an error cut short
    with memory_advice(learner.config, "cold_start.learner"), learner.scorer.active():
        for packed in learner.packs(sequences):
            logprob, _ = learner.scorer(packed)  # [n]
            # An idle rank goes through the same motions, and adds nothing.
            counts = bool(packed.members)
            part = -logprob.sum() / total * counts
            part.backward()
            loss += part.detach()

    # A step along a gradient that is not finite would leave no weight of use.
    norm = learner.optimizer.clip()
    if not torch.isfinite(norm):
        learner.optimizer.zero()
        raise UserError("the gradient of a supervised step is not finite; lower the learning rate")

    if step is not None:
        learner.optimizer.left_out = step - learner.optimizer.step
    # The rate is that of this step: applying it moves the schedule on.
    lr = learner.optimizer.lr
    with memory_advice(learner.config, "cold_start.learner"), learner.weights().writing():
        learner.optimizer.apply()

    # Each rank has its packs' part of the loss; the tokens are counted from the whole batch.
    tokens = sum(len(ids) for ids, _ in sequences)
    seconds = time.perf_counter() - started
    return {
        **learner.group.sums({"loss": float(loss)}),
        "grad_norm": float(norm),
        "lr": lr,
        "tokens_per_s": tokens / seconds,
    }


@torch.no_grad()
def sft_loss(learner: Learner, sequences: Sequence[MaskedTokens]) -> float:
    """The same loss, in nats a token, of what is not trained on."""
    nats = 0.0
    # As in a step, over the same packs: the two losses can be compared.
    with learner.scorer.active():
        for packed in learner.packs(sequences):
            logprob, _ = learner.scorer(packed)  # [n]
            nats -= float(logprob.sum()) * bool(packed.members)  # of an idle rank nothing
    of_all_ranks = sum(learner.group.gather(nats))
    return of_all_ranks / _masked_tokens(sequences)


def _masked_tokens(sequences: Sequence[MaskedTokens]) -> int:
    """At least 1: a mean over no tokens is 0."""
    return max(sum(int(mask.sum()) for _, mask in sequences), 1)
