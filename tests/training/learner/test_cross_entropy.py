"""What a GPU runs compiled, as it is written: the same numbers as torch's own, in any precision of the logits."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from torch import Tensor

from solostream.training.learner.kernels.cross_entropy import fused, gathered
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.packing import pack


@pytest.fixture(autouse=True)
def as_written():
    """Without a compiler of C++, whose kernels for a CPU nobody uses here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def drawn(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a row that is all but decided, targets likely and unlikely, and another pull on every token."""
    torch.manual_seed(11)
    logits = 6 * torch.randn(7, 97)
    logits[2, 5] = 60
    targets = torch.tensor([0, 96, 5, 4, 50, 50, 13])
    return logits.to(dtype).requires_grad_(), targets, torch.linspace(-1.5, 2.0, 7)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_numbers_and_gradients_are_those_of_log_softmax(dtype: torch.dtype, near: float, temperature: float) -> None:
    logits, targets, pull = drawn(dtype)
    every = (logits.double() / temperature).log_softmax(-1)
    wanted, entropies = every.gather(-1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)
    (gradient,) = torch.autograd.grad(wanted @ pull.double(), logits)

    logprob, entropy = fused(logits, targets, temperature)
    (found,) = torch.autograd.grad(logprob @ pull, logits)
    assert logprob.dtype == entropy.dtype == torch.float32
    assert found.dtype == dtype
    assert not entropy.requires_grad
    assert torch.allclose(logprob.double(), wanted, atol=1e-4)
    assert torch.allclose(entropy.double(), entropies, atol=1e-4)
    assert torch.allclose(found.float(), gradient.float(), atol=near * float(gradient.abs().max()))


def test_both_ways_agree_and_the_backward_pass_keeps_the_logits_in_their_own_precision() -> None:
    logits, targets, pull = drawn(torch.bfloat16)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprob, entropy = fused(logits, targets, 0.9)
    assert [one.dtype for one in kept if one.ndim == 2] == [torch.bfloat16]
    again, entropy_again = gathered(logits.float() / 0.9, targets)
    assert torch.allclose(logprob, again, atol=1e-5)
    assert torch.allclose(entropy, entropy_again, atol=1e-5)
    (first,), (second,) = (torch.autograd.grad(one @ pull, logits) for one in (logprob, again))
    assert torch.allclose(first.float(), second.float(), atol=1e-2)


def test_a_scorer_that_is_compiled_gives_what_one_gives_that_is_not() -> None:
    ids = torch.arange(40).numpy() * 7 % tiny_models.VOCABULARY
    packed = pack([(ids, ids > 3), (ids[:13], ids[:13] > 20)], [1, 0])
    found = []
    for compiled in (False, True):
        model = tiny_models.model(scale=3.0)
        scorer = LogprobComputer(model, chunk=9, temperature=0.8, compiled=compiled)  # several chunks, with a rest
        with scorer.active():
            logprob, entropy = scorer(packed)
            (logprob * torch.linspace(-1, 2, len(logprob))).sum().backward()
        found.append((logprob.detach(), entropy, *(p.grad for p in model.parameters())))
        scored, bonus = scorer(packed, entropy_grad=True)
        assert torch.allclose(scored, logprob, atol=1e-5)
        assert bonus.requires_grad  # an entropy bonus is learnt from, compiled or not
    for plain, compiled_one in zip(*found, strict=True):
        assert torch.allclose(plain, compiled_one, atol=1e-5 * max(1.0, float(plain.abs().max())))
