"""Formulas that were once broken on purpose without a test noticing, since every example sat on a symmetry.

Each is held here by a property, or by numbers that sit on none. `benchmarks/house_parts/mutants.py` breaks them again,
one by one, in a copy of the tree, and expects this file to fail.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ledgers import constant, trajectory

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Generation, Sampling
from solostream.agent.engines.hf.sampling import sample
from solostream.agent.engines.scripted import ScriptedEngine, byte_tokenizer
from solostream.agent.rollout import rollout
from solostream.envs import Task, ToolEnv
from solostream.envs.data.combine import split
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.learner import Learner
from solostream.training.learner.optimizer import factor
from solostream.training.learner.optimizer.muon import Muon, orthogonalise
from solostream.training.losses.cispo import CISPO
from solostream.training.losses.clip_cov import covariance
from solostream.training.losses.gspo import GSPO
from solostream.training.losses.tokens import Tokens
from solostream.training.rollouts.collector import oldest_version


@given(
    st.lists(st.floats(0.0, 0.3), min_size=2, max_size=9),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_drift_is_the_travel_between_the_two_versions(steps: list[float], data: st.DataObject) -> None:
    """D of an observation is Σ of the steps after the version that acted before, up to the one that acts now."""
    first = data.draw(st.integers(0, len(steps)))
    second = data.draw(st.integers(0, len(steps)))
    by_version, told = (ValueTracker(0.05, 0.99, d_half=0.13) for _ in range(2))
    for version, step in enumerate(steps, 1):
        by_version.record_drift(version, step)
    by_version.observe("x", 0.3, version=first)
    by_version.observe("x", 0.9, version=second)
    low, high = sorted((first, second))
    told.observe("x", 0.3, 0.0)
    told.observe("x", 0.9, math.fsum(steps[low:high]))
    assert by_version.evidence("x") == pytest.approx(told.evidence("x"), rel=1e-9)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_an_episode_is_as_old_as_its_oldest_token(versions: list[int], dispatched: int) -> None:
    """Neither its dispatch nor its first token: a restarted engine may have begun it under a later version."""
    one = trajectory(response=range(len(versions)), version=dispatched)
    ledger = one.versions.copy()
    ledger[one.action_mask] = versions
    assert oldest_version(replace(one, versions=ledger)) == min(versions)


def test_the_ratio_starts_at_the_sampler_however_large_the_mismatch_was() -> None:
    """Updates on stale batches, one after the other: the clip acts on each, and nothing weighs the tokens."""
    learner = Learner(tiny_models.model(), LearnerConfig(lr=1e-4))
    blank = [trajectory(f"t{i}", response=range(5 + i, 19 + 2 * i)) for i in range(4)]
    for _ in range(3):
        scored = learner.logprobs(blank)
        stale = [trajectory(t.task_id, response=t.token_ids[3:].tolist(), logprobs=lp - 0.37)
                 for t, lp in zip(blank, scored, strict=True)]  # fmt: skip
        metrics = learner.update(Batch(stale), constant(0.7, 1.9, 0.2, 1.1, batch=stale), version=0)
        assert metrics["mismatch/on_policy_max"] == pytest.approx(0.37, abs=1e-3)
        assert metrics["clip/high"] == 1  # e^0.37 = 1.45 > 1.28, and every advantage is positive
        assert not any(name.startswith("tis/") for name in metrics)


class Seeds:
    """Passes on to a script, and keeps the seed of each request."""

    version = 0

    def __init__(self, *turns: str) -> None:
        self.script = ScriptedEngine(lambda text: turns[text.count("<|im_start|>assistant") - 1])
        self.seen: list[int] = []

    async def generate(self, prompt_ids: Any, sampling: Sampling) -> Generation:
        self.seen.append(sampling.seed)
        return await self.script.generate(prompt_ids, sampling)

    async def release(self, key: str) -> None: ...


async def test_every_request_of_an_episode_draws_its_own_numbers() -> None:
    """Three turns, the first in several requests: each its own seed, other ones in another episode."""
    closes_no_call = "```\ntext\n```\n```python\n1\n```\n"
    env = ToolEnv([Task("t", "Six times seven?", "42")], system_prompt="", max_turns=5)

    async def seeds(seed: int) -> list[int]:
        engine = Seeds(closes_no_call, "```python\n2\n```\n", "\\boxed{42}")
        sampling = Sampling(400, temperature=0.8)
        await rollout(env, engine, Chat(byte_tokenizer()), sampling=sampling, max_tokens=2000, seed=seed)  # type: ignore[arg-type]
        return engine.seen

    one, two, again = await seeds(11), await seeds(12), await seeds(11)
    await env.aclose()
    assert one == again
    assert len(one) == len(two) >= 4
    assert len({*one, *two}) == 2 * len(one)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=12), st.floats(0.02, 0.98))
@settings(max_examples=60, deadline=None)
def test_top_p_keeps_the_token_that_reaches_p(weights: list[int], p: float) -> None:
    """The kept set is the smallest whose probability is at least p: the one that crosses it belongs to it."""
    probabilities = np.array(weights, np.float64) / sum(weights)
    order = np.argsort(-probabilities, kind="stable")
    mass = np.cumsum(probabilities[order])
    if np.abs(mass - p).min() < 1e-4:
        return  # float32 may see either side of a tie
    kept = set(order[: int((mass < p).sum()) + 1].tolist())
    rows = 512
    uniform = torch.arange(rows) / rows
    every = lambda x: torch.full((rows,), x)
    logits = torch.tensor(np.log(probabilities), dtype=torch.float32).expand(rows, -1)
    tokens, logprobs = sample(logits, uniform, every(1.0), every(0), every(p))
    total = probabilities[list(kept)].sum()
    assert set(tokens.tolist()) <= kept
    assert all(token in tokens for token in kept if probabilities[token] / total > 2 / rows)
    assert logprobs.numpy() == pytest.approx(np.log(probabilities[tokens.numpy()] / total), abs=1e-4)


def test_muon_looks_ahead_along_its_momentum() -> None:
    """Nesterov: the update is g + μ(m − g) with the momentum m of now, over three steps of unlike gradients."""
    torch.manual_seed(1)
    matrix = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    muon, mu, lr, decay = Muon([matrix], 0.03, momentum=0.8, weight_decay=0.1), 0.8, 0.03, 0.1
    expected, momentum = matrix.detach().clone(), torch.zeros(5, 3, dtype=torch.float64)
    for scale in (1.0, -3.0, 0.5):
        gradient = scale * torch.randn(5, 3, dtype=torch.float64)
        matrix.grad = gradient.clone()
        muon.step()
        momentum = mu * momentum + (1 - mu) * gradient
        ahead = (1 - mu) * gradient + mu * momentum
        expected = expected * (1 - lr * decay) - lr * math.sqrt(5 / 3) * orthogonalise(ahead[None])[0]
    assert torch.allclose(matrix.detach(), expected, atol=1e-12)


def test_the_cosine_between_its_quarter_points() -> None:
    """½(1 + cos πx), which a straight line meets at x = 0, ½ and 1 only; after a warm-up of 3 of 23 steps."""
    config = LearnerConfig(schedule="cosine", warmup_steps=3, total_steps=23)
    got = [factor(config, step) for step in range(3, 26)]
    assert got[2] == pytest.approx(0.9755282581)  # x = 0.1
    assert got[6] == pytest.approx(0.7938926261)  # x = 0.3
    assert got[13] == pytest.approx(0.2730047501)  # x = 0.65
    assert got[20:] == [0.0, 0.0, 0.0]
    assert all(a > b for a, b in pairwise(got[:21]))


def test_split_goes_by_the_prompt() -> None:
    """Equal prompts are on one side whatever their ids are; unlike prompts are not, though they share an id."""
    prompts = [f"problem {i % 60}" for i in range(240)]
    train, test = split([Task(f"id-{i}", prompt, "1") for i, prompt in enumerate(prompts)], 0.37, seed=3)
    sides = {task.prompt for task in train}, {task.prompt for task in test}
    assert all(sides)
    assert not sides[0] & sides[1]
    train, test = split([Task("one id", f"problem {i}", "1") for i in range(60)], 0.37, seed=3)
    assert {task.prompt for task in test} == sides[1]


@pytest.mark.parametrize("seed", range(4))
def test_rescored_evidence_counts_in_the_order_of_dispatch(seed: int) -> None:
    """Whatever the order in a batch, the first by another policy has the travel, on the last one of the batch before.

    A token 100 + e, of event e, moves by .011·(1 + e) an update: D tells which trajectory was scored.
    """
    rng = random.Random(seed)
    events = [
        trajectory("x", rng.choice([0.0, 1.0]), event=e, version=v, response=[100 + e] * 4)
        for e, v in enumerate([0, 0, 1, 1, 3, 4, 5, 6, 6])
    ]
    updates = 0

    def now(trajectories: list) -> list[np.ndarray]:
        return [-0.011 * updates * (t.token_ids[t.action_mask] - 99) for t in trajectories]

    expected, tracker = ValueTracker(0.1, 0.99), ValueTracker(0.1, 0.99)
    spo = SPO(tracker, divergence="rescore", logprobs=now)
    # By event: how many updates since, and what the last one moves by. Event 3 is by the policy that acted before.
    moved = {4: 1 * 0.011 * 3, 7: 2 * 0.011 * 7}
    for t in events:
        expected.observe("x", t.reward, moved.get(t.dispatch.event, 0.0), event=t.dispatch.event)
    for first, last, done in ((0, 3, 0), (3, 7, 1), (7, 9, 3)):
        updates = done
        spo(Batch(rng.sample(events[first:last], last - first)))
    assert tracker.evidence("x") == pytest.approx(expected.evidence("x"), rel=1e-5)


def test_gspo_clips_the_ratio_of_a_sequence_on_both_sides() -> None:
    """s = e^0.1 against 1.04 where A > 0, s = e^-0.1 against 0.97 where A < 0; two tokens a sequence."""
    segment = torch.tensor([0, 0, 1, 1])
    logprob = torch.tensor([0.3, -0.1, -0.25, 0.05])
    advantage = torch.tensor([1.5, 1.5, -0.7, -0.7])
    tokens = Tokens(logprob, torch.zeros(4), advantage, segment, 2, torch.zeros(4) > 0)
    loss, metrics = GSPO(clip_low=0.03, clip_high=0.04)(tokens)
    assert loss.tolist() == pytest.approx([-1.04 * 1.5] * 2 + [0.97 * 0.7] * 2, abs=1e-6)
    assert (int(metrics["clip/high"]), int(metrics["clip/low"])) == (2, 2)


def test_covariance_is_of_centred_numbers() -> None:
    """(x - 2)(y - 1) of each; none of the means is 0."""
    got = covariance(np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.5, -1.5]))
    assert got.tolist() == [-3.0, -0.0, -2.5]


def test_cispo_counts_only_what_it_clipped() -> None:
    """Ratios e^0.1, 1 and e^-0.1 lie inside (0.8, 1.28), e^0.4 and e^-0.5 do not."""
    logprob = torch.tensor([0.1, 0.0, -0.1, 0.4, -0.5])
    tokens = Tokens(logprob, torch.zeros(5), torch.ones(5), torch.arange(5), 5, torch.zeros(5) > 0)
    metrics = CISPO(clip_low=0.2, clip_high=0.28)(tokens)[1]
    assert (int(metrics["clip/high"]), int(metrics["clip/low"])) == (1, 1)
