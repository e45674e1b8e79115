"""`standardize` and `shape_early_calls`: worked numbers, measures, kinds."""

import math
import random

import pytest
import torch
from tiny_ledgers import one_each, trajectory

from solostream.errors import UserError
from solostream.training.advantages.aspo import ASPO
from solostream.training.advantages.base import shape_early_calls, standardize
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.reinforce import Reinforce


def test_token_measure() -> None:
    assert standardize([0.5, -0.5], [10, 30]) == pytest.approx([1.7320508, -0.5773503])


def test_trajectory_measure() -> None:
    assert standardize([3.0, 1.0, 1.0, -1.0]) == pytest.approx([math.sqrt(2), 0, 0, -math.sqrt(2)])


def test_token_measure_centres_the_loss_where_the_trajectory_measure_does_not() -> None:
    rng = random.Random(0)
    a, w = [rng.random() for _ in range(64)], [rng.randint(1, 500) for _ in range(64)]
    token, plain = standardize(a, w), standardize(a)
    assert sum(x * y for x, y in zip(w, token, strict=True)) == pytest.approx(0, abs=1e-9)
    assert sum(x * y * y for x, y in zip(w, token, strict=True)) / sum(w) == pytest.approx(1)
    assert abs(sum(x * y for x, y in zip(w, plain, strict=True))) > 10


@pytest.mark.parametrize("equal", [[0.1] * 7, [1e9] * 3, [0.0], [0.3]])
def test_equal_advantages_carry_no_signal(equal: list[float]) -> None:
    assert standardize(equal) == [0.0] * len(equal)
    assert standardize(equal, [3] * len(equal)) == [0.0] * len(equal)


def test_empty_and_weightless() -> None:
    assert standardize([]) == []
    assert standardize([1.0, 2.0], [0, 0]) == [0.0, 0.0]


def test_kind_is_kept() -> None:
    given = torch.tensor([0.5, -0.5], dtype=torch.float64)
    out = standardize(given, torch.tensor([10, 30]))
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.float64
    assert out.tolist() == pytest.approx([1.7320508, -0.5773503])
    shaped = shape_early_calls(
        torch.tensor([1.0, 1.0]),
        torch.tensor([100.0, 500.0]),
        torch.tensor([800, 1200]),
        torch.tensor([True, True]),
        -2,
        0.7,
    )
    assert shaped.tolist() == pytest.approx([1.4, 0.6])
    assert given.tolist() == [0.5, -0.5]


def test_early_calls_worked_number() -> None:
    assert shape_early_calls([1.0, 1.0], [100, 500], [800, 1200], [True, True], -2.0, 0.7) == pytest.approx([1.4, 0.6])


def test_early_calls_are_clipped_to_the_advantage() -> None:
    """mean p = 500, mean L = 1000: the terms are +2 and -2, the bounds 0.7 x 1 and 0.7 x 0.5."""
    got = shape_early_calls([1.0, 0.5], [0, 1000], [1000, 1000], [1, 1], -4.0, 0.7)
    assert got == pytest.approx([1.7, 0.15])


def test_only_correct_trajectories_with_code_move_and_count() -> None:
    a = [1.0, 1.0, 1.0, -1.0, -0.5]
    got = shape_early_calls(a, [100, 500, None, 0, 0], [800, 1200, 9000, 9000, 9000], [1, 1, 1, 0, 0], -2.0, 0.7)
    assert got == pytest.approx([1.4, 0.6, 1.0, -1.0, -0.5])
    nan = torch.tensor([100.0, 500.0, float("nan"), 0, 0])
    assert shape_early_calls(a, nan, [800, 1200, 9000, 9000, 9000], [1, 1, 1, 0, 0], -2.0, 0.7) == got


def test_no_shaping_where_the_bounds_cross_or_one_is_eligible() -> None:
    assert shape_early_calls([-1.0, 0.0, 1.0], [0, 5, 10], [10] * 3, [1] * 3, -2, 0.7)[:2] == [-1.0, 0.0]
    assert shape_early_calls([1.0, 1.0], [0, None], [10, 10], [1, 1], -2, 0.7) == [1.0, 1.0]


@pytest.mark.parametrize("k", [0.0, 1.0, -1, 2])
def test_k_must_keep_the_sign(k: float) -> None:
    with pytest.raises(UserError, match="0 < k < 1"):
        shape_early_calls([1.0], [0], [1], [1], -2, k)
    with pytest.raises(UserError, match="0 < k < 1"):
        ASPO(GRPO(), k=k)


def test_no_shaped_advantage_changes_sign() -> None:
    rng = random.Random(3)
    for _ in range(200):
        n = rng.randint(2, 12)
        a = [rng.gauss(0, 1) for _ in range(n)]
        p = [rng.randint(0, 4000) for _ in range(n)]
        got = shape_early_calls(a, p, [rng.randint(1, 5000) for _ in range(n)], [True] * n, -2.5, 0.9)
        assert all(x * y > 0 for x, y in zip(a, got, strict=True))


def test_reward_shaping_fails_where_aspo_does_not() -> None:
    """An all-correct group: (1) normalising the shaped reward cancels the correctness signal, the size of δ included;
    (2) half of the correct answers get a negative advantage. ASPO's stay positive, ordered by the first call."""
    positions = [0, 100, 200, 300, 400, 500, 600, 700]

    def group(rewards: list[float]) -> list:
        return [
            trajectory(f"t{i}", r, response=range(1000), call_at=p, group=0)
            for i, (r, p) in enumerate(zip(rewards, positions, strict=True))
        ]

    def shaped_rewards(delta: float) -> list[float]:
        return [1 + delta * (p - 350) / 1000 for p in positions]

    by_reward = one_each(GRPO()(group(shaped_rewards(-2.0))))
    assert sum(a < 0 for a in by_reward) == 4
    assert sum(by_reward) == pytest.approx(0, abs=1e-9)
    assert one_each(GRPO()(group(shaped_rewards(-0.01)))) == pytest.approx(by_reward, abs=1e-3)

    by_advantage = one_each(ASPO(Reinforce(), -2.0, 0.7)(group([1.0] * 8)))
    assert all(a > 0 for a in by_advantage)
    assert by_advantage == sorted(by_advantage, reverse=True)
    assert sum(by_advantage) == pytest.approx(8)  # the correctness signal is all there
