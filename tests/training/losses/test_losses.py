"""Every loss token by token, by hand: on both sides of each bound."""

import math

import numpy as np
import pytest
import torch

from solostream.errors import UserError
from solostream.training.losses.aepo import AEPOClip
from solostream.training.losses.aggregation import token_weights
from solostream.training.losses.cispo import CISPO
from solostream.training.losses.clip_cov import ClipCov
from solostream.training.losses.dcpo import DCPO
from solostream.training.losses.dppo import DPPO
from solostream.training.losses.gspo import GSPO
from solostream.training.losses.kl import estimates, kl_penalty
from solostream.training.losses.kl_cov import KLCov
from solostream.training.losses.ppo_clip import PPOClip
from solostream.training.losses.r2vpo import R2VPO
from solostream.training.losses.sapo import SAPO
from solostream.training.losses.tokens import Tokens

# Ratios below, within and above [0.7, 1.45], each with both signs of the advantage.
RATIO = (0.6, 0.6, 0.9, 0.9, 1.7, 1.7, 6.0, 0.75, 1.5, 1.0)
ADVANTAGE = (0.8, -0.3, 0.7, -0.4, 1.1, -0.9, -0.25, -0.5, 0.65, 0.0)


def tokens(picked: tuple[int, ...] = ()) -> Tokens:
    ratio = torch.tensor(RATIO, dtype=torch.float64)
    old = torch.linspace(-2.0, -0.2, len(RATIO), dtype=torch.float64)
    chosen = torch.zeros(len(RATIO), dtype=torch.bool)
    chosen[list(picked)] = True
    return Tokens(
        logprob=(old + ratio.log()).requires_grad_(),
        old=old,
        advantage=torch.tensor(ADVANTAGE, dtype=torch.float64),
        segment=torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3, 3]),
        sequences=4,
        picked=chosen,
    )


def tokens_of(new: tuple[float, ...], old: tuple[float, ...], advantage: tuple[float, ...]) -> Tokens:
    """One trajectory of tokens whose probabilities went from `old` to `new`."""
    logs = (torch.tensor(row, dtype=torch.float64).log() for row in (new, old))
    n = len(new)
    return Tokens(
        *logs,
        torch.tensor(advantage, dtype=torch.float64),
        torch.zeros(n, dtype=torch.int64),
        1,
        torch.zeros(n, dtype=torch.bool),
    )


def counts(metrics: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: int(value) for name, value in metrics.items()}


def test_ppo_clip() -> None:
    """Clipped where the ratio has gone further than the bound in the direction that the advantage wants."""
    clipped = [-0.48, 0.21, -0.63, 0.36, -1.595, 1.53, 1.5, 0.375, -0.9425, 0.0]
    loss, metrics = PPOClip(clip_low=0.3, clip_high=0.45, dual_clip=0)(tokens())
    assert loss.tolist() == pytest.approx(clipped)
    assert counts(metrics) == {"clip/low": 1, "clip/high": 2}
    dual = [*clipped[:6], 0.75, *clipped[7:]]  # 3 x 0.25 in place of 6 x 0.25; 1.7 is below 3
    loss, metrics = PPOClip(clip_low=0.3, clip_high=0.45, dual_clip=3.0)(tokens())
    assert loss.tolist() == pytest.approx(dual)
    assert counts(metrics) == {"clip/low": 1, "clip/high": 2, "clip/dual": 1}


def test_dcpo_bounds_follow_the_old_probability() -> None:
    """algorithms.md: q = .9: [.76874, 1.18718]; .5: [.5, 1.30623]; .01: [.5, 5]; and none are wider than at q = 0."""
    low, high = DCPO().bounds(torch.tensor([0.9, 0.5, 0.01, 1.0], dtype=torch.float64))
    assert low.tolist() == pytest.approx([0.76874, 0.5, 0.5, 0.8], abs=1e-5)
    assert high.tolist() == pytest.approx([1.18718, 1.30623, 5.0, (1 + 1.8**0.5) / 2], abs=1e-5)
    assert all(bound.isfinite().all() for bound in DCPO().bounds(torch.zeros(1)))


def test_dcpo() -> None:
    """By hand with each token's own bounds; a rare token passes at a ratio where PPO clips."""
    given = tokens()
    loss, metrics = DCPO(clip_low=0.1, clip_high=0.3, dual_clip=4.0)(given)
    expected, clipped = [], 0
    for ratio, a, old in zip(RATIO, ADVANTAGE, given.old.exp().tolist(), strict=True):
        low = 0.5 + 0.5 * max(1 - 0.4 / old, 0) ** 0.5
        high = 0.5 + 0.5 * (1 + 1.2 / old) ** 0.5
        clipped += ratio > high and a > 0
        value = -min(ratio * a, min(max(ratio, low), high) * a)
        expected.append(min(value, -4 * a) if a < 0 else value)
    assert loss.tolist() == pytest.approx(expected)
    assert counts(metrics)["clip/high"] == clipped == 2
    assert counts(metrics)["clip/dual"] == 1
    rare = Tokens(
        *(torch.tensor([x]) for x in (math.log(0.03), math.log(0.01), 1.0)), torch.tensor([0]), 1, torch.tensor([False])
    )
    assert float(DCPO()(rare)[0]) == pytest.approx(-3.0)
    assert float(PPOClip()(rare)[0]) == pytest.approx(-1.28)


def test_dcpo_counts_what_left_its_bounds_and_has_something_to_lose() -> None:
    """ε_low = .3 and ε_high = 1: [.5, 1.618] at q = 1 and [.5, 2] at q = .5, which a ratio may reach."""
    new, old = (0.4, 0.4, 0.4, 0.5, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.5)
    signs = (-0.3, 0.6, 0.0, -0.4, 0.7, -0.2, 0.0, 0.8)
    loss = DCPO(clip_low=0.3, clip_high=1.0, dual_clip=0)
    low, high = loss.bounds(torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert (low.tolist(), high.tolist()) == ([0.5, 0.5], pytest.approx([1.618034, 2.0]))
    assert counts(loss(tokens_of(new, old, signs))[1]) == {"clip/low": 1, "clip/high": 1}


def test_r2vpo_draws_back_what_went_far() -> None:
    """L = −ρA + λ/2·(ρ − 1)², so dL/dlog π = ρ·(λ(ρ − 1) − A): of a far token it turns its sign."""
    given = tokens()
    loss, metrics = R2VPO(penalty=0.5)(given)
    square = [(r - 1) ** 2 for r in RATIO]
    assert loss.tolist() == pytest.approx([0.25 * s - r * a for r, a, s in zip(RATIO, ADVANTAGE, square, strict=True)])
    assert float(metrics["clip/variance"]) == pytest.approx(sum(square))
    loss.sum().backward()
    assert given.logprob.grad.tolist() == pytest.approx(
        [r * (0.5 * (r - 1) - a) for r, a in zip(RATIO, ADVANTAGE, strict=True)]
    )


def test_sapo_fades() -> None:
    """The gradient's share is 4σ(1 − σ) with τ by the sign of A: at ρ = 6 and A < 0, τ = 2: 1.8e-4."""
    given = tokens()
    loss, metrics = SAPO(tau_positive=0.5, tau_negative=2.0)(given)
    gates = [1 / (1 + math.exp(-(0.5 if a > 0 else 2.0) * (r - 1))) for r, a in zip(RATIO, ADVANTAGE, strict=True)]
    taus = [0.5 if a > 0 else 2.0 for a in ADVANTAGE]
    assert loss.tolist() == pytest.approx([-4 / t * g * a for t, g, a in zip(taus, gates, ADVANTAGE, strict=True)])
    loss.sum().backward()
    left = [4 * g * (1 - g) for g in gates]
    assert given.logprob.grad.tolist() == pytest.approx(
        [-s * r * a for s, r, a in zip(left, RATIO, ADVANTAGE, strict=True)]
    )
    assert float(metrics["clip/gate"]) == pytest.approx(sum(left))
    assert left[6] == pytest.approx(1.8157e-4, rel=1e-3)


def test_sapo_takes_an_advantage_of_zero_for_a_negative_one_and_tau_as_exactly_as_the_ratio() -> None:
    loss, metrics = SAPO(tau_positive=0.3, tau_negative=1.7)(tokens_of((0.8, 0.8), (0.5, 0.5), (0.0, 0.9)))
    gates = [1 / (1 + math.exp(-tau * (0.8 / 0.5 - 1))) for tau in (1.7, 0.3)]
    assert loss.tolist() == pytest.approx([0.0, -4 / 0.3 * gates[1] * 0.9], rel=1e-12)
    assert float(metrics["clip/gate"]) == pytest.approx(sum(4 * g * (1 - g) for g in gates), rel=1e-12)


def test_aepo_is_ppo_with_a_gradient_above_the_upper_bound() -> None:
    given, same = tokens(), tokens()
    loss, metrics = AEPOClip(clip_low=0.3, clip_high=0.45, dual_clip=3.0)(given)
    plain, counted = PPOClip(clip_low=0.3, clip_high=0.45, dual_clip=3.0)(same)
    assert loss.tolist() == pytest.approx(plain.tolist())
    assert counts(metrics) == counts(counted)
    loss.sum().backward()
    plain.sum().backward()
    far = [r > 1.45 and a > 0 for r, a in zip(RATIO, ADVANTAGE, strict=True)]
    assert sum(far) == 2
    for is_far, a, got, ppo in zip(
        far, ADVANTAGE, given.logprob.grad.tolist(), same.logprob.grad.tolist(), strict=True
    ):
        assert got == pytest.approx(-1.45 * a if is_far else ppo)


def test_dppo_counts_what_moved_too_far_on_either_side() -> None:
    """π_old = (.2, .2, .5, .5, .5, .2), π less it = (.25, .25, −.25, −.25, .1, −.1); at A = 0 only a loss counts."""
    old = torch.tensor([0.2, 0.2, 0.5, 0.5, 0.5, 0.2], dtype=torch.float64)
    new = old + torch.tensor([0.25, 0.25, -0.25, -0.25, 0.1, -0.1], dtype=torch.float64)
    given = Tokens(
        logprob=new.log().requires_grad_(),
        old=old.log(),
        advantage=torch.tensor([0.7, 0.0, -0.6, 0.0, 0.9, -0.3], dtype=torch.float64),
        segment=torch.zeros(6, dtype=torch.int64),
        sequences=1,
        picked=torch.zeros(6, dtype=torch.bool),
    )
    loss, metrics = DPPO()(given)
    assert counts(metrics) == {"clip/low": 2, "clip/high": 1}
    wanted = [0, 0, 0, 0, -1.2 * 0.9 * math.log(0.6), 0.5 * 0.3 * math.log(0.1)]
    assert loss.tolist() == pytest.approx(wanted)


def test_dppo_keeps_what_moved_just_so_far_and_what_its_advantage_would_draw_back() -> None:
    """1 less .5 is exactly δ. A token that lost .75 and is to gain stays, whatever its advantage is."""
    given = tokens_of((1.0, 0.5, 0.25, 0.125), (0.5, 1.0, 1.0, 1.0), (0.7, -0.6, 0.4, -0.3))
    loss, metrics = DPPO(delta_low=0.5, delta_high=0.5)(given)
    assert counts(metrics) == {"clip/low": 1, "clip/high": 0}
    wanted = [0.0, 0.5 * 0.6 * math.log(0.5), -0.25 * 0.4 * math.log(0.25), 0.0]
    assert loss.tolist() == pytest.approx(wanted)


def test_a_dual_clip_must_leave_tokens_of_the_policy_itself() -> None:
    PPOClip(dual_clip=0)
    PPOClip(dual_clip=1.01)
    for bound in (0.4, 1.0):
        for loss in (PPOClip, DCPO, AEPOClip):
            with pytest.raises(UserError, match=f"dual_clip = {bound:g} would cut"):
                loss(dual_clip=bound)


def test_cispo() -> None:
    given = tokens()
    loss, metrics = CISPO(clip_low=0.3, clip_high=0.45)(given)
    weight = [0.7, 0.7, 0.9, 0.9, 1.45, 1.45, 1.45, 0.75, 1.45, 1.0]
    logprob = given.logprob.tolist()
    assert loss.tolist() == pytest.approx([-w * a * x for w, a, x in zip(weight, ADVANTAGE, logprob, strict=True)])
    loss.sum().backward()
    assert given.logprob.grad.tolist() == pytest.approx([-w * a for w, a in zip(weight, ADVANTAGE, strict=True)])
    assert counts(metrics) == {"clip/low": 2, "clip/high": 4}


def test_gspo() -> None:
    """Geometric means: 0.687 is below the bounds, 0.9 and 1.225 are within, 1.899 is above."""
    of_sequence = [(0.6 * 0.6 * 0.9) ** (1 / 3), 0.9, (1.7 * 1.7 * 6 * 0.75) ** 0.25, 1.5**0.5]
    loss, metrics = GSPO(clip_low=0.3, clip_high=0.45)(tokens())
    expected = []
    for place, advantage in zip((0, 0, 0, 1, 2, 2, 2, 2, 3, 3), ADVANTAGE, strict=True):
        bounded = min(max(of_sequence[place], 0.7), 1.45)
        expected.append(-min(of_sequence[place] * advantage, bounded * advantage))
    assert loss.tolist() == pytest.approx(expected)
    assert counts(metrics) == {"clip/low": 1, "clip/high": 1}  # tokens 1 and 4


def test_clip_cov_takes_the_gradient_of_what_was_picked_and_nothing_else() -> None:
    given, plain = tokens((2, 5)), tokens()
    loss, metrics = ClipCov(clip_low=0.3, clip_high=0.45, dual_clip=3.0)(given)
    of_ppo = PPOClip(clip_low=0.3, clip_high=0.45, dual_clip=3.0)(plain)[0]
    assert loss.tolist() == of_ppo.tolist()
    loss.sum().backward()
    of_ppo.sum().backward()
    expected = plain.logprob.grad.clone()
    expected[[2, 5]] = 0
    assert given.logprob.grad.tolist() == expected.tolist()
    assert counts(metrics) == {"clip/low": 1, "clip/high": 2, "clip/dual": 1, "clip/covariance": 2}


def test_clip_cov_draws_its_share_from_between_the_bounds() -> None:
    cov = np.array([2.0, 1.0, 5.0, 1.5, -3.0, 4.5, 0.5, 3.0, 7.0, 2.5])  # 2, 1.5, 4.5, 3 and 2.5 lie between
    drawn = [ClipCov(share=0.35).select(cov, np.random.default_rng(seed)) for seed in range(40)]
    assert {int(one.sum()) for one in drawn} == {3}
    assert set(np.flatnonzero(np.any(drawn, axis=0)).tolist()) == {0, 3, 5, 7, 9}
    assert len({tuple(one) for one in drawn}) > 5
    assert ClipCov(share=0.9).select(cov, np.random.default_rng(0)).sum() == 5  # no more than there are
    assert ClipCov(share=0.01).select(cov, np.random.default_rng(0)).sum() == 1  # never none
    assert ClipCov().select(cov - 10, np.random.default_rng(0)).sum() == 0
    for bounds in ((2.0, 2.0), (3.0, 1.0)):
        with pytest.raises(UserError, match="low < high"):
            ClipCov(bounds=bounds)
    with pytest.raises(UserError, match="dual_clip"):
        ClipCov(dual_clip=0.5)


def test_kl_cov() -> None:
    loss, metrics = KLCov(kl=2.5)(tokens((0, 6)))
    expected = [-ratio * advantage for ratio, advantage in zip(RATIO, ADVANTAGE, strict=True)]
    for place in (0, 6):
        expected[place] += 2.5 * abs(math.log(RATIO[place]))
    assert loss.tolist() == pytest.approx(expected)
    assert counts(metrics) == {"clip/covariance": 2}


def test_kl_cov_picks_the_largest_and_the_earlier_of_equals() -> None:
    cov = np.array([2.0, 5.0, -7.0, 3.0, 5.0, 3.0, 3.0])
    picked = [np.flatnonzero(KLCov(share=s).select(cov, np.random.default_rng(0))).tolist() for s in (0.01, 0.3, 0.6)]
    assert picked == [[1], [1, 4], [1, 3, 4, 5]]


def test_a_ratio_is_told_up_to_e_to_the_20() -> None:
    far = Tokens(
        torch.tensor([30.0, -30.0, 19.5]), torch.zeros(3), torch.ones(3), torch.arange(3), 3, torch.zeros(3).bool()
    )
    assert far.log_ratio.tolist() == [20.0, -20.0, 19.5]


def test_kl_by_its_three_estimates() -> None:
    d = torch.tensor([0.3, -0.7, 25.0], dtype=torch.float64)
    found = estimates(d[:2])
    assert found["k1"].tolist() == pytest.approx([0.3, -0.7])
    assert found["k2"].tolist() == pytest.approx([0.045, 0.245])
    assert found["k3"].tolist() == pytest.approx([math.exp(-0.3) - 0.7, math.exp(0.7) - 1.7])
    ratio = torch.tensor([1.2, 0.5, 2.0], dtype=torch.float64)
    assert kl_penalty("k1", d, torch.zeros(3), ratio).tolist() == pytest.approx([0.36, -0.35, 40.0])
    assert kl_penalty("k2", d, torch.zeros(3), ratio).tolist() == pytest.approx([0.054, 0.1225, 400.0])
    below = kl_penalty("k3", -d, torch.zeros(3), ratio)[2]
    assert float(below) == pytest.approx(2 * (math.exp(20) - 21))


def test_weights_of_tokens() -> None:
    assert token_weights("token_mean", [3, 0, 5]) == [0.125] * 3
    assert token_weights("token_mean", [0, 0]) == [1.0] * 2
    assert token_weights("seq_mean_token_mean", [3, 0, 5]) == pytest.approx([1 / 9, 1 / 3, 1 / 15])
    assert token_weights("seq_mean_token_sum", [3, 0, 5], 7) == pytest.approx([1 / 21] * 3)
    assert token_weights("token_mean", []) == token_weights("seq_mean_token_sum", [], 7) == []
