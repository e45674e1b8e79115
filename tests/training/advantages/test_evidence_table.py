"""The benchmark's table policy: what it calls exact is exact, and its control fails as the paper says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ledgers import one_each, trajectory

from benchmarks.evidence_parts import early_calls, report, several_steps
from benchmarks.evidence_parts.cells import Cells
from benchmarks.evidence_parts.shaping import PaperShaping
from benchmarks.evidence_parts.statistics import area, interval
from benchmarks.evidence_parts.table import POPULATIONS, Kind, Population, TablePolicy, Tasks
from benchmarks.evidence_parts.table_run import Adam
from benchmarks.evidence_parts.tuning import best_rate
from solostream.agent.trajectory import Dispatch
from solostream.training.advantages.base import Advantages
from solostream.training.losses.ppo_clip import PPOClip

TWO = Population((Kind(0.7, 0.8, 0.3), Kind(0.4, 0.6, 0.1)), 0.4, 0.25)


def a_batch(n: int = 4000) -> tuple:
    rng = np.random.default_rng(5)
    tasks, policy = Tasks.draw(TWO, 40, rng), TablePolicy(TWO)
    return tasks, policy, policy.sample(tasks, rng.integers(0, 40, n), rng)


def test_the_exact_accuracy_is_what_sampling_finds() -> None:
    tasks, policy, episodes = a_batch(20_000)
    expected = policy.accuracy(tasks)[0][episodes.task].mean()
    assert episodes.reward.mean() == pytest.approx(expected, abs=4 * 0.5 / 20_000**0.5)
    assert 0.1 < expected < 0.4


def test_the_gradient_is_autograds() -> None:
    """Σ A log π/Σ T of the sampled tokens, differentiated by torch."""
    tasks, policy, episodes = a_batch(60)
    made = episodes.trajectories([Dispatch(i) for i in range(60)], tasks)
    rng = np.random.default_rng(1)
    advantages = Advantages([rng.normal(size=t.n_action_tokens) for t in made])
    logits = torch.tensor(policy.logits, requires_grad=True)
    loss, count = torch.zeros((), dtype=torch.float64), 0
    for i, a in enumerate(advantages.values):
        for t, weight in enumerate(a):
            row = int(episodes.row[i, t])
            step = row % policy.rows
            offset = torch.zeros(5, dtype=torch.float64)
            offset[0] = tasks.offset[episodes.task[i]] if 0 < step < policy.rows - 1 else 0.0
            logprob = (logits[row] - offset).log_softmax(0)[int(episodes.token[i, t])]
            assert float(logprob.detach()) == pytest.approx(float(made[i].logprobs[1 + t]), abs=1e-5)
            loss, count = loss + weight * logprob, count + 1
    (loss / count).backward()
    expected = torch.nan_to_num(logits.grad).numpy()
    assert np.abs(episodes.gradient(advantages, policy.logits.shape) - expected).max() < 1e-12


def test_a_tracker_is_told_how_far_the_policy_moved() -> None:
    """Mean |Δ log π| of the sampled tokens, nats: token by token for the table, by hand for the early calls."""
    _, policy, episodes = a_batch(70)
    assert episodes.drift(policy) == pytest.approx(0, abs=1e-12)
    finite = np.isfinite(policy.logits)
    policy.logits[finite] += 0.3 * np.random.default_rng(4).normal(size=int(finite.sum()))
    moved = []
    for i, n in enumerate((episodes.row >= 0).sum(1)):
        for t in range(n):
            p = policy.probabilities(episodes.row[i, t : t + 1], episodes.offset[i, t : t + 1])[0]
            moved.append(abs(np.log(p[episodes.token[i, t]] / (1 - episodes.score[i, t, episodes.token[i, t]]))))
    assert np.mean(moved) > 0.01
    assert episodes.drift(policy) == pytest.approx(np.mean(moved), rel=1e-9)

    early = early_calls.Policy(*early_calls.SETTINGS["free"])
    found = early.logprobs(2, np.array([0, 3, 0, 0]))
    first, right = 0.08, 0.9925
    expected = [np.log(1 - first), *[0] * 23, np.log(1 - first), *[0] * 23, np.log(first)]
    wrong = np.log((1 - right) / 4)
    assert found == pytest.approx([*expected, np.log(right), wrong, np.log(right), np.log(right)])
    assert len(early.logprobs(16, np.zeros(4, int))) == 16 * 24 + 4  # the last place has no choice to make


def test_the_gradient_of_a_later_step_is_that_of_its_objective() -> None:
    """Central differences of the mean clipped objective of some members, after the policy has moved."""
    tasks, policy, episodes = a_batch(90)
    rng = np.random.default_rng(2)
    advantages = Advantages([rng.normal(size=n) for n in (episodes.row >= 0).sum(1)])
    free = several_steps.Steps(several_steps.CLIPS["no bound"], rng)
    everyone = np.arange(90)
    first = free.gradient(policy, episodes, advantages, everyone)  # the ratio is 1
    assert np.abs(first - episodes.gradient(advantages, policy.logits.shape)).max() < 1e-12

    low, high, dual = 0.2, 0.28, 1.4
    members = np.array([3, 14, 15, 60, 77])

    def objective() -> float:
        total, count = 0.0, 0
        for i in members:
            for t, a in enumerate(advantages.values[i]):
                row, token = int(episodes.row[i, t]), int(episodes.token[i, t])
                step = row % policy.rows
                offset = tasks.offset[episodes.task[i]] if 0 < step < policy.rows - 1 else 0.0
                now = policy.probabilities(np.array([row]), np.array([offset]))[0, token]
                ratio = now / (1 - episodes.score[i, t, token])
                value = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
                total, count = total + (max(value, dual * a) if a < 0 else value), count + 1
        return total / count

    finite = np.isfinite(policy.logits)
    policy.logits[finite] += 0.4 * np.random.default_rng(3).normal(size=int(finite.sum()))
    steps = several_steps.Steps(PPOClip(low, high, dual), rng)
    found = steps.gradient(policy, episodes, advantages, members)
    assert 0 < steps.cut < steps.seen
    for at in np.argwhere(finite):
        own = policy.logits[tuple(at)]
        sides = []
        for side in (1e-6, -1e-6):
            policy.logits[tuple(at)] = own + side
            sides.append(objective())
        policy.logits[tuple(at)] = own
        assert found[tuple(at)] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_wrong_answers_are_louder() -> None:
    """As on the quickstart's model: the mean squared score of a wrong answer is several times a right one's."""
    policy = TablePolicy(POPULATIONS["equal"])
    tasks = Tasks.draw(POPULATIONS["equal"], 60, np.random.default_rng(0))
    episodes = policy.sample(tasks, np.arange(3000) % 60, np.random.default_rng(1))
    loud = (episodes.score**2 * (episodes.row >= 0)[..., None]).sum((1, 2))
    assert loud[episodes.reward == 0].mean() > 2 * loud[episodes.reward == 1].mean()


def test_adam_is_torchs() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(size=(3, 2)), torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    theirs.data = torch.from_numpy(ours.copy())
    adam, torchs = Adam((3, 2), 0.07), torch.optim.AdamW([theirs], 0.07, (0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        gradient = rng.normal(size=(3, 2))
        adam.step(ours, gradient)
        theirs.grad = torch.from_numpy(-gradient)
        torchs.step()
    assert np.abs(ours - theirs.detach().numpy()).max() < 1e-9


def test_the_papers_reward_shaping_cancels_correctness_in_a_right_group() -> None:
    """All eight right: half are negative and δ does not matter. Beside a wrong answer it still does."""

    def group(wrong: int) -> list:
        return [
            trajectory(f"t{i}", float(i >= wrong), response=range(1000), call_at=37 * i * i, group=0) for i in range(8)
        ]

    small, large = (one_each(PaperShaping(delta)(group(0))) for delta in (-0.01, -0.5))
    assert sum(a < 0 for a in large) == 4
    assert small == pytest.approx(large, abs=1e-3)
    assert PaperShaping()(group(0)).metrics["advantage/right_but_negative"] == 0.5
    assert one_each(PaperShaping(-0.01)(group(3))) != pytest.approx(one_each(PaperShaping(-0.5)(group(3))), abs=0.1)


def test_cells_are_computed_once_and_survive_a_torn_line(tmp_path: Path) -> None:
    cells, asked = Cells(tmp_path), []

    def compute() -> float:
        asked.append(1)
        return 0.5

    assert cells.get(("a", 1), compute) == cells.get(("a", 1), compute) == 0.5
    with open(tmp_path / "cells.jsonl", "a", encoding="utf-8") as file:
        file.write('{"key": ["b"')
    again = Cells(tmp_path)
    assert again.get(("a", 1), compute) == 0.5
    assert again.get(("c",), lambda: [1, None]) == [1, None]
    assert len(asked) == 1
    assert Cells(tmp_path).get(("c",), compute) == [1, None]
    assert json.loads((tmp_path / "cells.jsonl").read_text().splitlines()[0])["found"] == 0.5


def test_tuning_halves_and_takes_the_best_of_what_is_left() -> None:
    """The rate that is best at the end is out already where it was poor early."""
    asked = []

    def score(rate: float, seed: int, share: float) -> float:
        asked.append((rate, share))
        early = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.1}[rate]
        return early if share < 1 else {1: 0.9, 2: 0.75, 3: 0.8, 4: 1.0}[rate] + 0.01 * seed

    assert best_rate(score, [1, 2, 3, 4], [0, 1]) == 3
    assert {rate for rate, share in asked if share == 1} == {2, 3}


def test_areas_and_intervals_by_hand() -> None:
    """.2 to .6 over [0, 4], then .6 up to 10; mean 2 of 1, 2, 3 with t(2) = 4.303."""
    assert area([(0, 0.2), (4, 0.6)], 10) == pytest.approx((4 * 0.4 + 6 * 0.6) / 10)
    assert interval([1, 2, 3]) == pytest.approx((2, 4.3027 / 3**0.5), abs=1e-3)


def a_thinker() -> early_calls.Policy:
    policy = early_calls.Policy(needed=4, otherwise=0.8)
    policy.logits += np.random.default_rng(3).normal(0, 0.7, policy.logits.shape)
    return policy


def test_early_calls_are_exactly_what_sampling_finds() -> None:
    policy, rng, n = a_thinker(), np.random.default_rng(4), 4000
    played = [policy.episode(rng) for _ in range(n)]
    accuracy, first = policy.exact()
    calls = np.array([sentences * early_calls.LENGTH for sentences, *_ in played])
    assert np.mean([reward for *_, reward in played]) == pytest.approx(accuracy, abs=4 * 0.5 / n**0.5)
    assert calls.mean() == pytest.approx(first, abs=4 * calls.std() / n**0.5)
    assert 0.3 < accuracy < 0.95


def test_the_gradient_of_early_calls_is_autograds() -> None:
    """Σ A log π/Σ T, where a sentence's other tokens follow from its first."""
    policy, rng = a_thinker(), np.random.default_rng(6)
    played = [policy.episode(rng) for _ in range(40)]
    size = [
        sentences * early_calls.LENGTH + (sentences < early_calls.SENTENCES) + early_calls.CODE
        for sentences, *_ in played
    ]
    advantages = Advantages([np.full(n, a) for n, a in zip(size, rng.normal(size=40), strict=True)], {})
    logits = torch.tensor(policy.logits, requires_grad=True)
    cut = early_calls.SENTENCES * 2
    decide, code = logits[:cut].view(-1, 2).log_softmax(1), logits[cut:].view(early_calls.CODE, -1).log_softmax(1)
    total = logits.sum() * 0
    for (sentences, tokens, _), a in zip(played, advantages.values, strict=True):
        total = total + a[0] * decide[:sentences, early_calls.THINK].sum()
        if sentences < early_calls.SENTENCES:
            total = total + a[0] * decide[sentences, early_calls.CALL]
        total = total + a[0] * code[range(early_calls.CODE), tokens].sum()
    (total / sum(size)).backward()
    assert logits.grad is not None
    assert np.allclose(policy.gradient(played, advantages), logits.grad.numpy(), atol=1e-12)


def test_a_model_run_counts_at_the_rate_that_was_chosen_of_the_most(tmp_path: Path) -> None:
    """Of two rates with fresh seeds, one of them from a table at one rate for all."""
    cells = Cells(tmp_path)
    curve = lambda end: {"episodes": [0, 64], "sampled": [0.25, end], "greedy": [0.25, end], "tokens": [0, 9]}
    for tried, rate in (([2.5e-4, 5e-4, 1e-3], 2.5e-4), ([5e-4], 5e-4)):
        cells.get(("model rate", "mixed", "ours", tried, 2), lambda rate=rate: rate)
    for rate, ends in ((2.5e-4, (0.5, 0.75)), (5e-4, (0.875, 1.0))):
        for seed, end in enumerate(ends):
            cells.get(("model", "mixed", "ours", rate, seed, 2), lambda end=end: curve(end))
    row = next(line for line in report.write(cells).splitlines() if line.startswith("| ours |"))
    assert "| 0.00025 | 2 | 0.438 ±" in row


def test_areas_at_equal_tokens_end_where_the_shortest_run_does(tmp_path: Path) -> None:
    """One method writes 200 tokens and one 500; both go from .2 to .6 on the way."""
    cells = Cells(tmp_path)
    for method, spent in (("ours", 200), ("grpo", 500)):
        cells.get(("model rate", "mixed", method, [5e-4], 3), lambda: 5e-4)
        curve = {"episodes": [0, 96], "sampled": [0.2, 0.6], "greedy": [0.2, 0.6], "tokens": [0, spent]}
        cells.get(("model", "mixed", method, 5e-4, 0, 3), lambda curve=curve: curve)
    header, _, *rows = report.write(cells).splitlines()[2:6]
    column = header.split(" | ").index("area, equal tokens")
    assert [row.split(" | ")[column] for row in rows] == ["0.400", "0.280"]  # GRPO is at .36 after 200 tokens
