"""Trajectories of several segments: each is learnt as the model saw it, and they share advantage and denominator."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from tiny_ledgers import constant

from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.training.advantages.base import Advantages
from solostream.training.advantages.stream.rescoring import Scored
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.learner import Learner

# (opening, what is said and answered, which places of what is in sight stay after it)
STORIES = [
    ([3, 9, 4], [([5, 8, 13], [21, 2], 0), ([34, 1], [7], [0, 3]), ([40, 41, 42, 43], [6, 6], [0, 3]), ([11], [], 0)]),
    ([17], [([2, 3], [30], [0, 1]), ([9, 9, 1], [], 0)]),
    ([50, 51], [([52, 53, 54], [], 0)]),
]  # fmt: skip


def told(score: Learner | None = None, shift: float = 0.0) -> list[Trajectory]:
    """The stories; the log-probabilities are those of `score`, one segment at a time, less `shift`."""
    found = []
    for number, (opening, turns) in enumerate(STORIES):
        ledger = TokenRecord()
        ledger.add_observation("user", opening, "q")
        for said, answer, stay in turns:
            logprobs = [-1.0] * len(said)
            if score is not None:
                logprobs = [value - shift for value in plainly(score.model, ledger.context, said)]
            ledger.add_action(said, logprobs, [0] * len(said), "a")
            if isinstance(stay, list):
                ledger.fold(stay)
            if answer:
                ledger.add_observation("tool", answer, "o")
        found.append(ledger.close(f"t{number}", float(number % 2), "answered"))
    return found


@torch.no_grad()
def plainly(model: torch.nn.Module, before: list[int], said: list[int]) -> list[float]:
    """Log-probabilities of `said` behind `before`, by the model's own forward pass over just that."""
    ids = torch.tensor([[*before, *said]])
    every = model(input_ids=ids).logits[0].log_softmax(-1)
    return [float(every[len(before) + i - 1, token]) for i, token in enumerate(said)]


@pytest.mark.parametrize("most", [8192, 1])
@pytest.mark.parametrize("name", ["qwen3", "mistral, window 6"])
def test_the_learner_scores_what_was_seen(name: str, most: int) -> None:
    learner = Learner(tiny_models.model(name), LearnerConfig(max_tokens_per_batch=most))
    batch = told(learner)
    assert [len(t.segments) for t in batch] == [3, 2, 1]
    for trajectory, scored in zip(batch, learner.logprobs(batch), strict=True):
        assert np.abs(scored - trajectory.logprobs[trajectory.action_mask]).max() < 1e-5
    metrics = learner.update(Batch(batch), constant(1.0, -1.0, 0.5, batch=batch), version=0)
    assert metrics["mismatch/max"] < 1e-5
    assert metrics["drift"] >= 0.0


def test_what_is_kept_for_rescoring_is_scored_alike() -> None:
    learner = Learner(tiny_models.model(), LearnerConfig())
    batch = told(learner)
    then = learner.logprobs(batch)
    kept = [Scored.of(one, 0, values).trajectory("t") for one, values in zip(batch, then, strict=True)]
    assert [values.tolist() for values in learner.logprobs(kept)] == [values.tolist() for values in then]


def caught(most: int, aggregation: str, batch: list[Trajectory], values: list[np.ndarray]) -> torch.Tensor:
    learner = Learner(
        tiny_models.model(), LearnerConfig(max_tokens_per_batch=most, aggregation=aggregation, grad_clip=0.0)
    )
    found: list[torch.Tensor] = []
    learner.optimizer.apply = lambda: found.append(  # type: ignore[method-assign]
        torch.cat([p.grad.flatten() for p in learner.optimizer.parameters])
    )
    learner.update(Batch(batch), Advantages(values), drift=False)
    return found[0]


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean"])
def test_one_gradient_and_it_is_the_textbooks(aggregation: str) -> None:
    """Every segment by itself through the model; a token weighs what its whole trajectory gives it."""
    model = tiny_models.model()
    learner = Learner(tiny_models.model(), LearnerConfig())
    batch = told(learner, shift=0.05)
    rng = np.random.default_rng(4)
    values = [rng.normal(size=t.n_action_tokens) for t in batch]
    total = sum(t.n_action_tokens for t in batch)
    for (opening, turns), own, trajectory in zip(STORIES, values, batch, strict=True):
        ledger, done = TokenRecord(), 0
        ledger.add_observation("user", opening, "q")
        for said, answer, stay in turns:
            ids = torch.tensor([[*ledger.context, *said]])
            every = model(input_ids=ids).logits[0].log_softmax(-1)
            first = len(ledger.context)
            logprob = every[torch.arange(first - 1, first + len(said) - 1), torch.tensor(said)]
            advantage = torch.tensor(own[done : done + len(said)], dtype=torch.float32)
            ratio = torch.full_like(logprob, 0.05).exp() * (logprob - logprob.detach()).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            weight = 1 / total if aggregation == "token_mean" else 1 / (len(batch) * trajectory.n_action_tokens)
            (loss * weight).sum().backward()
            done += len(said)
            ledger.add_action(said, [-1.0] * len(said), [0] * len(said), "a")
            if isinstance(stay, list):
                ledger.fold(stay)
            if answer:
                ledger.add_observation("tool", answer, "o")
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    for most in (8192, 10, 1):
        assert torch.allclose(caught(most, aggregation, batch, values), wanted, atol=1e-5, rtol=1e-3)
