"""Packed scoring equals the model's own forward pass, one sequence at a time, on every architecture it accepts."""

import numpy as np
import pytest
import tiny_models
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from solostream.errors import UserError
from solostream.training.learner.logprobs import LogprobComputer
from solostream.training.learner.packing import pack, plan

LENGTHS = [9, 30, 2, 17, 17, 5, 40, 31, 3]


def sequences(seed: int = 0, lengths: list[int] = LENGTHS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random tokens; about half are actions, the first never, the last always."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        mask = rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        found.append((rng.integers(0, tiny_models.VOCABULARY, length), mask))
    return found


def plain(model, ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    every = model(input_ids=torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
    return torch.stack([every[i - 1, ids[i]] for i in np.flatnonzero(mask)])


@pytest.mark.parametrize("budget", [1000, 60, 1])
@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_packed_equals_one_at_a_time(name: str, budget: int) -> None:
    model, data = tiny_models.model(name), sequences()
    scorer = LogprobComputer(model, chunk=7)
    assert scorer.packed == (name not in ("gemma2, soft-capped",))
    seen = []
    with torch.no_grad():
        for members in plan(LENGTHS, budget):
            packed = pack(data, members)
            logprob, entropy = scorer(packed)
            expected = torch.cat([plain(model, *data[i]) for i in members])
            assert torch.allclose(logprob, expected, atol=1e-5), (logprob - expected).abs().max()
            assert (entropy > 0).all()
            seen += members
    assert sorted(seen) == list(range(len(LENGTHS)))


def test_a_neighbour_in_the_pack_changes_nothing() -> None:
    """Adversarial: other tokens, other order, other company; the same log-probabilities to the last bit or two."""
    scorer = LogprobComputer(tiny_models.model(), chunk=100)
    one, two = sequences(1), sequences(2)
    mixed = [one[0], *two[1:]]
    with torch.no_grad():
        first = scorer(pack(one, [0, 3, 1]))[0][: one[0][1].sum()]
        second = scorer(pack(mixed, [0, 4, 6]))[0][: one[0][1].sum()]
    assert torch.allclose(first, second, atol=2e-6)


def test_plan_fills_the_budget_and_isolates_what_exceeds_it() -> None:
    packs = plan(LENGTHS, 40)
    assert packs == [[2, 8, 5, 0, 3], [4], [1], [7], [6]]
    assert plan([50, 3, 60], 40) == [[1], [0], [2]]
    assert plan([], 40) == []


def test_entropy_by_hand() -> None:
    model, data = tiny_models.model(), sequences()
    logprob, entropy = LogprobComputer(model, chunk=3, temperature=0.7)(pack(data, [0]))
    ids, mask = data[0]
    every = (model(input_ids=torch.from_numpy(ids)[None]).logits[0] / 0.7).log_softmax(-1)
    rows = torch.from_numpy(np.flatnonzero(mask) - 1)
    assert torch.allclose(entropy, -(every.exp() * every).sum(-1)[rows], atol=1e-5)
    assert torch.allclose(logprob, every[rows, torch.from_numpy(ids[mask])], atol=1e-5)


def test_first_token_cannot_be_an_action() -> None:
    with pytest.raises(ValueError, match="nothing to predict it from"):
        pack([(np.array([1, 2]), np.array([True, True]))], [0])


class LargestLogits(TorchDispatchMode):
    """The most rows of any tensor whose last dimension is the vocabulary (weights have exactly 64 columns too: 32)."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.ndim == 2 and x.shape[-1] == tiny_models.VOCABULARY:
                self.rows = max(self.rows, x.shape[0])
        return out


def test_logits_exist_only_a_chunk_at_a_time_forward_and_backward() -> None:
    model = tiny_models.model()
    scorer = LogprobComputer(model, chunk=33)
    packed = pack(sequences(0, [100] * 8), list(range(8)))
    assert len(packed.targets) > 300
    with LargestLogits() as largest:
        scorer(packed)[0].sum().backward()
    assert largest.rows == 33  # the embedding's own 64 columns are its 32 rows transposed


def test_recurrent_models_are_refused() -> None:
    """State runs across the seam of two sequences there: silently wrong gradients, were it not checked."""
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2))
    with pytest.raises(UserError, match="cannot be trained packed"):
        LogprobComputer(mamba, chunk=10)


def test_the_model_is_left_as_it_was(tmp_path) -> None:
    model = tiny_models.model()
    before = model.config._attn_implementation
    LogprobComputer(model, chunk=10)(pack(sequences(), [0]))
    assert model.config._attn_implementation == before
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == before


def test_a_chunk_has_the_gradient_of_log_softmax_and_holds_its_logits_once() -> None:
    model, data = tiny_models.model(), sequences(4)
    scorer = LogprobComputer(model, chunk=1000, temperature=0.8)
    packed = pack(data, plan(LENGTHS, 1000)[0])
    pull = torch.linspace(-1.5, 2.0, len(packed.targets))  # another one for every token
    hidden = scorer._hidden(packed)[0].index_select(0, packed.rows).detach().requires_grad_()
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprob, entropy = scorer._chunk(hidden, packed.targets, False)
    assert kept.count(torch.Size([len(hidden), tiny_models.VOCABULARY])) == 1
    assert not entropy.requires_grad
    (found,) = torch.autograd.grad(logprob @ pull, hidden)

    every = (scorer.head(hidden) / 0.8).log_softmax(-1)
    (expected,) = torch.autograd.grad(every.gather(-1, packed.targets[:, None])[:, 0] @ pull, hidden)
    assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max()))
    assert torch.allclose(entropy, -(every.exp() * every).sum(-1), atol=1e-5)
