"""The sampler against its definition, on vocabularies wide enough for its short cuts."""

import math

import numpy as np
import pytest
import torch

from solostream.agent.engines.hf import sampling
from solostream.agent.engines.hf.sampling import NUCLEUS, sample, uniforms

ONES = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(state: int) -> int:
    """One output of splitmix64 (Steele et al. 2014) in Python's own integers."""
    z = (state + GOLDEN) & ONES
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ONES
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ONES
    return z ^ (z >> 31)


def test_uniform_numbers_are_those_of_splitmix64() -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF  # its published first output
    seeds, counters = np.array([0, 3, (1 << 63) + 5, ONES], np.uint64), np.array([0, 1, 999_999, 17], np.uint64)
    got = uniforms(seeds, counters)
    wanted = [splitmix((splitmix(int(s)) + int(c) * GOLDEN) & ONES) >> 41 for s, c in zip(seeds, counters, strict=True)]
    assert got.dtype == np.float32
    assert [float(x) * 2**23 for x in got] == wanted


def kept(logits: list[float], top_k: int, top_p: float) -> list[bool]:
    """By the definition: a full sort, ties by id, probabilities among the k largest."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: top_k or None]
    largest = logits[order[0]]
    weight = {i: math.exp(logits[i] - largest) for i in order}
    total, before, found = math.fsum(weight.values()), 0.0, [False] * len(logits)
    for i in order:
        found[i] = top_p >= 1 or i == order[0] or before / total < top_p
        before += weight[i]
    return found


def rows(size: int) -> torch.Tensor:
    """Peaked, ordinary, flat, with many ties, with two values only: (5, size)."""
    generator = torch.Generator().manual_seed(11)
    ordinary = torch.randn(size, generator=generator)
    tied = torch.randint(0, 40, (size,), generator=generator).float() / 8
    return torch.stack([ordinary * 6, ordinary, ordinary * 0.01, tied, (ordinary > 1.3).float()])


@pytest.mark.parametrize("size", [37, 2 * NUCLEUS + 5])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [
        ([5, 5, 5, 5, 5], [1, 1, 1, 1, 1]),
        ([1, 2, 36, 7, 1], [0.9, 0.51, 0.77, 0.33, 0.2]),
        ([0, 0, 0, 0, 0], [0.31, 0.62, 0.07, 0.41, 0.53]),
        ([0, 9, 0, 0, 3], [1, 0.83, 0.97, 1, 1]),  # rows without a filter beside others
        ([0, 0, 0, 0, 0], [0.999, 0.995, 0.93, 0.98, 0.99]),  # wider than what is sorted first
        ([NUCLEUS, NUCLEUS + 1, 0, 5000, NUCLEUS - 1], [0.99, 0.9, 1, 0.8, 1]),
    ],
)
def test_what_stays_is_what_a_full_sort_would_keep(size: int, top_k: list[int], top_p: list[float]) -> None:
    logits = rows(size)
    got = sampling._kept(logits, torch.tensor(top_k), torch.tensor(top_p, dtype=torch.float32))
    for row, k, p, found in zip(logits, top_k, top_p, got, strict=True):
        assert found.tolist() == kept(row.double().tolist(), k, p), (k, p)


def test_every_row_of_a_batch_has_its_own_temperature_and_filter() -> None:
    logits = torch.tensor([[0.3, 1.9, -0.4, 1.2], [2.0, 0.1, 2.5, 1.0], [0.7, 0.2, 0.9, 0.4], [1.1, 3.0, 0.0, 2.2]])
    temperature, top_k = torch.tensor([0.0, 0.5, 1.0, 2.0]), torch.tensor([0, 2, 0, 1])
    top_p, uniform = torch.tensor([1.0, 1.0, 0.65, 1.0]), torch.tensor([0.9, 0.2, 0.55, 0.99])
    tokens, logprobs = sample(logits, uniform, temperature, top_k, top_p)

    # Row 0 is greedy and told under the plain softmax; row 1 has tokens 0 and 2 at logits 4 and 5.
    plain = 1.9 - math.log(sum(map(math.exp, (0.3, 1.9, -0.4, 1.2))))
    first = 1 / (1 + math.e)  # of token 0 of row 1, and 0.2 lies below it
    # Row 2 in order 2, 0, 3, 1: masses e^.9, e^.7, e^.4, e^.2; two of them hold .622 < .65, so a third stays.
    three = [math.exp(x) for x in (0.7, 0.9, 0.4)]
    assert tokens.tolist() == [1, 0, 2, 1]
    assert logprobs.tolist() == pytest.approx([plain, math.log(first), math.log(three[1] / sum(three)), 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("top_k", "top_p", "few"),
    [
        ([5, 9, 7], [1.0, 0.6, 0.8], 9),
        ([5, 2053, 7], [1.0, 1.0, 0.83], 7),  # the second row has no filter
        ([2053, 2053, 2053], [0.31, 0.22, 0.9], 700),
        ([600, 2053, 3], [0.71, 0.45, 0.5], 600),
        ([8, 8, 8], [0.999, 1.0, 0.2], 8),
    ],
)
def test_the_few_largest_decide_where_they_can(top_k: list[int], top_p: list[float], few: int) -> None:
    logits = torch.randn(3, 2053, generator=torch.Generator().manual_seed(5)) * torch.tensor([[7.0], [3.5], [5.0]])
    got = sampling._kept_of_few(logits, torch.tensor(top_k), torch.tensor(top_p), few)
    assert got is not None
    for row, k, p, found in zip(logits, top_k, top_p, got, strict=True):
        assert found.tolist() == kept(row.double().tolist(), k, p)


def test_the_few_largest_say_where_they_do_not_decide() -> None:
    wide = torch.linspace(0.0, 0.1, 50).repeat(2, 1)
    tied = wide.clone()
    tied[0, 45:48] = 0.095  # the third, fourth and fifth largest are one
    whole, three, sure = torch.tensor([50, 50]), torch.tensor([4, 4]), torch.tensor([1.0, 1.0])
    assert sampling._kept_of_few(wide, whole, torch.tensor([0.5, 0.05]), 4) is None  # four hold less than a half
    assert sampling._kept_of_few(tied, three, sure, 4) is None
    found = sampling._kept_of_few(tied, torch.tensor([50, 4]), sure, 4)  # of the first row all stay anyway
    assert found is not None
    assert found.sum(1).tolist() == [50, 4]


def test_a_filter_of_one_token_is_a_filter() -> None:
    logits = torch.tensor([[0.5, 0.9, 0.4], [1.2, 1.1, 1.0]])
    tokens, logprobs = sample(logits, torch.tensor([0.01, 0.99]), *torch.tensor([[1.0, 1.0], [1, 1], [1.0, 1.0]]))
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == [0.0, 0.0]


def test_a_greedy_row_takes_the_lowest_of_its_largest_and_leaves_the_others_alone() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0], [1.0, 4.0, 4.0], [0.0, 0.0, 0.0]])
    tokens, _ = sample(
        logits, torch.tensor([0.4, 0.9, 0.7]), torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3, dtype=int), torch.ones(3)
    )
    assert tokens.tolist() == [0, 1, 2]
