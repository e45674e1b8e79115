"""What a learner adds to the policy's loss: a band for the entropy, demonstrations to imitate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from pydantic import ValidationError
from tiny_ledgers import constant, trajectory

from solostream.training.config import validate
from solostream.training.config.learner import ImitationConfig, LearnerConfig
from solostream.training.learner.learner import Learner
from solostream.training.learner.terms import imitation
from solostream.training.learner.terms.entropy_band import EntropyBand


def test_the_band_is_of_earlier_updates() -> None:
    """Mean of .8 and 1.2 is 1: the band [.5, 1.25]. Below and above a distance with a gradient, inside none."""
    band = EntropyBand(0.5, 1.25)
    entropy = torch.tensor([0.1, 0.6, 1.0, 2.0], requires_grad=True)
    assert band.outside(entropy).tolist() == [0.0] * 4
    band.record(0.8)
    band.record(1.2)
    outside = band.outside(entropy)
    assert outside.tolist() == pytest.approx([0.4, 0.0, 0.0, 0.75])
    outside.sum().backward()
    assert entropy.grad.tolist() == [-1.0, 0.0, 0.0, 1.0]
    other = EntropyBand(0.5, 1.25)
    other.load_state_dict(band.state_dict())
    assert other.outside(entropy).tolist() == outside.tolist()


def learner(**settings: Any) -> Learner:
    return Learner(tiny_models.model(seed=1), LearnerConfig(**{"lr": 1e-3, "grad_clip": 0, **settings}))


def batch_of(by: Learner, n: int = 5) -> list:
    rng = np.random.default_rng(3)
    blank = [trajectory(f"t{i}", response=rng.integers(0, 64, 3 + i).tolist()) for i in range(n)]
    scored = by.logprobs(blank)
    return [
        trajectory(t.task_id, response=t.token_ids[3:].tolist(), logprobs=lp)
        for t, lp in zip(blank, scored, strict=True)
    ]


def gradient(by: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in by.model.parameters() if p.grad is not None]).clone()


def kept_gradient(by: Learner, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What each optimizer step sees."""
    seen: list[torch.Tensor] = []
    clip = by.optimizer.clip

    def look() -> torch.Tensor:
        seen.append(gradient(by))
        return clip()

    monkeypatch.setattr(by.optimizer, "clip", look)
    return seen


def test_an_update_draws_entropies_back_into_the_band(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model is far above a band of a tenth of its entropy: β = 3 leaves −λ(1 − 3)·∇H, its sign turned."""
    plain, banded = (
        learner(entropy_coef=0.5, entropy_band=band, entropy_band_weight=3.0) for band in (None, (0.05, 0.1))
    )
    batch = batch_of(plain)
    none = constant(*[0.0] * 5, batch=batch)
    assert banded.band is not None
    banded.band.record(float(np.concatenate(plain.entropies(batch)).mean()))
    one, two = kept_gradient(plain, monkeypatch), kept_gradient(banded, monkeypatch)
    plain.update(batch, none)
    got = banded.update(batch, none)
    assert torch.allclose(two[0], -2 * one[0], atol=1e-6)
    assert one[0].abs().max() > 1e-4
    assert got["entropy/outside"] == pytest.approx(0.9 * got["entropy"], rel=0.05)
    assert banded.state_dict()["entropy_band"]["updates"] == 2


def test_a_resumed_learner_has_the_band() -> None:
    settings = {"entropy_coef": 0.01, "entropy_band": (0.9, 1.1)}
    one, two = learner(**settings), learner(**settings)
    batch = batch_of(one)
    signs = constant(1.0, -1.0, 0.5, -0.5, 1.0, batch=batch)
    one.update(batch, signs)
    two.load_state_dict(one.state_dict())
    assert one.update(batch, signs)["loss"] == two.update(batch, signs)["loss"]


P = (0.9, 0.5, 0.02)


@pytest.mark.parametrize(
    ("kind", "weights"), [("sft", (1, 1, 1)), ("dft", P), ("chord", (0.09, 0.25, 0.0196))], ids=lambda x: str(x)[:5]
)
def test_what_a_demonstrated_token_weighs(kind: Any, weights: tuple[float, ...]) -> None:
    logprob = torch.tensor([math.log(p) for p in P], requires_grad=True)
    loss = imitation.losses(ImitationConfig(loss=kind), logprob, np.random.default_rng(0))
    assert loss.tolist() == pytest.approx([-w * math.log(p) for w, p in zip(weights, P, strict=True)])
    loss.sum().backward()
    assert logprob.grad.tolist() == pytest.approx([-w for w in weights])  # the weight itself has no gradient


def test_a_one_token_rollout_is_dft_in_expectation() -> None:
    """20,000 rollouts of four tokens: the mean of N/K is p within four standard errors, and single ones differ."""
    logprob = torch.tensor([[math.log(p) for p in P]] * 20_000)
    config = ImitationConfig(loss="one_token", samples=4)
    weight = (imitation.losses(config, logprob, np.random.default_rng(1)) / -logprob).double()
    error = [4 * (p * (1 - p) / 4 / 20_000) ** 0.5 for p in P]
    assert all(abs(m - p) <= e for m, p, e in zip(weight.mean(0).tolist(), P, error, strict=True))
    assert {round(x, 4) for x in weight[:, 1].tolist()} == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_share_of_imitation_decays_along_a_cosine() -> None:
    steady, fading = ImitationConfig(weight=0.3), ImitationConfig(weight=0.3, decay_steps=8)
    assert [imitation.weight_at(steady, s) for s in (0, 500)] == [0.3, 0.3]
    assert [imitation.weight_at(fading, s) for s in (0, 2, 4, 8, 9)] == pytest.approx([0.3, 0.256066, 0.15, 0, 0])


@pytest.mark.parametrize("budget", [8192, 14])
def test_an_update_is_both_gradients(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """(1 − μ)·policy + μ·imitation, however the packs are cut; without demonstrations the policy's alone."""
    share = {"imitation": {"loss": "dft", "weight": 0.25}, "max_tokens_per_batch": budget}
    plain, mixed = learner(), learner(**share)
    batch = batch_of(plain)
    signs = constant(1.0, -1.0, 0.5, -0.5, 1.0, batch=batch)
    demonstrations = [(t.token_ids[::-1].copy(), np.arange(len(t)) > 2) for t in batch[1:4]]
    policy, both = kept_gradient(plain, monkeypatch), kept_gradient(mixed, monkeypatch)

    plain.optimizer.zero()
    with torch.enable_grad():
        total = 0
        terms = []
        for ids, mask in demonstrations:
            logits = plain.model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, :-1]
            chosen = logits.log_softmax(-1).gather(-1, torch.from_numpy(ids[1:]).long()[:, None])[:, 0]
            chosen = chosen[torch.from_numpy(mask[1:])]
            terms.append((-chosen.detach().exp() * chosen).sum())
            total += len(chosen)
        (sum(terms) / total).backward()
    imitated = gradient(plain)

    plain.update(batch, signs)
    got = mixed.update(batch, signs, demonstrations=demonstrations)
    assert torch.allclose(both[0], 0.75 * policy[0] + 0.25 * imitated, atol=2e-6)
    assert (got["imitation/weight"], got["imitation/loss"]) == pytest.approx(
        (0.25, (sum(terms) / total).item()), rel=1e-4
    )
    assert "imitation/loss" not in learner(**share).update(batch, signs)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="set entropy_coef above 0"):
        LearnerConfig(entropy_band=(0.8, 1.2))
    with pytest.raises(ValidationError, match="entropy_band must be"):
        LearnerConfig(entropy_coef=0.1, entropy_band=(1.2, 0.8))
    with pytest.raises(Exception, match=r"imitates the traces of cold_start\.data"):
        validate({"learner": {"imitation": {"loss": "sft"}}})
