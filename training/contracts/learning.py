"""Contracts of what learning is made of: advantages and their stages, losses, samplers of tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from solostream import registry
from solostream.agent.exploration.tree import Branch
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.envs.data import Tasks
from solostream.envs.types import Task
from solostream.training.advantages import Advantages, estimator, grouping
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.losses import SelectsTokens
from solostream.training.losses.tokens import Tokens
from solostream.training.rollouts.samplers.history import Outcome, OutcomeHistory
from solostream.training.rollouts.task_sampler import Prioritized, TaskSampler

Promises = list[tuple[str, bool]]
LENGTHS = (3, 7, 2, 5, 4, 6, 1, 8)  # of the responses, in tokens


def batch(version: int = 0, trees: bool = False) -> Batch:
    """Eight trajectories of two groups, rewards 0, 1 and between; with `trees` each group is one, of two trunks."""
    made = []
    for i, n in enumerate(LENGTHS):
        record = TokenRecord()
        record.add_observation("user", [1, 2, 3], "question")
        record.add_action(list(range(10, 10 + n)), [-0.1 * (j + 1) for j in range(n)], [version] * n, "answer")
        dispatch = Dispatch(i, 0.25 + i / 16, version, i // 4)
        path, forks = ((i % 4 - 1, i % 4), (4,)) if i % 2 else ((i % 4,), ())  # a token of the response is shared
        branch = Branch(i - i % 4, 4, path, forks) if trees else None
        made.append(record.close(f"task-{i % 3}", (i % 4) / 3, "answered", dispatch=dispatch, branch=branch))
    return Batch(made)


def advantage(spec: str, options: dict[str, Any]) -> Promises:
    """An array a trajectory, finite, repeatable, and a state that survives JSON."""
    stage = registry.asks("advantage", spec, "inner")

    def logprobs(wanted: Sequence[Trajectory]) -> list[np.ndarray]:
        return [np.zeros(t.n_action_tokens) for t in wanted]

    def make() -> Any:
        name, stages = ("none", (spec,)) if stage else (spec, ())
        tracker = ValueTracker()
        sampler = Prioritized(("task-0", "task-1", "task-2"), tracker)
        return estimator(name, stages, {spec: options}, tracker, logprobs, logprobs, sampler)[-1]

    one, two = make(), make()
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    trees = getattr(one, "trees", "allowed") == "required"
    given = batch(trees=trees)
    got, again = one(given), two(given)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    third, fourth = one(batch(1, trees)), two(batch(1, trees))

    def same(a: Advantages, b: Advantages) -> bool:
        return all(np.array_equal(x, y) for x, y in zip(a.values, b.values, strict=True))

    return [
        ("one array a trajectory, over its action tokens", [len(v) for v in got.values] == list(LENGTHS)),
        ("values are finite", all(np.isfinite(v).all() for v in got.values)),
        ("the same batch, the same values", same(got, again)),
        ("its state survives JSON", same(third, fourth)),
        ("metrics are numbers", all(isinstance(v, int | float) for v in got.metrics.values())),
        ("it says whether it compares groups", grouping(one) in ("none", "optional", "required")),
    ]


def loss(spec: str, options: dict[str, Any]) -> Promises:
    """One finite loss and gradient a token, whatever the cut into micro-batches, and metrics as sums."""
    made = registry.make("loss", spec, options)
    generator = torch.Generator().manual_seed(7)
    segment = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    n = len(segment)
    old = -torch.rand(n, generator=generator, dtype=torch.float64) - 0.1
    new = old + 0.2 * torch.randn(n, generator=generator, dtype=torch.float64)
    weighed = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)[segment]
    picked = torch.zeros(n, dtype=torch.bool)
    if isinstance(made, SelectsTokens):
        chosen = made.select(np.random.default_rng(3).normal(size=n), np.random.default_rng(4))
        picked = torch.from_numpy(np.asarray(chosen))

    def run(keep: torch.Tensor, sequences: int, first: int) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
        logprob = new[keep].clone().requires_grad_()
        tokens = Tokens(logprob, old[keep], weighed[keep], segment[keep] - first, sequences, picked[keep])
        values, metrics = made(tokens)
        values.sum().backward()
        assert logprob.grad is not None
        return values.detach(), metrics, logprob.grad

    whole, metrics, gradient = run(torch.ones(n, dtype=torch.bool), len(LENGTHS), 0)
    parts = [run(segment == i, 1, i) for i in range(len(LENGTHS))]
    return [
        ("one loss a token", tuple(whole.shape) == (n,)),
        ("losses and gradients are finite", bool(whole.isfinite().all() and gradient.isfinite().all())),
        ("a gradient flows to the log-probabilities", float(gradient.abs().sum()) > 0),
        ("it does not depend on the cut", torch.allclose(torch.cat([p[0] for p in parts]), whole)),
        ("nor does its gradient", torch.allclose(torch.cat([p[2] for p in parts]), gradient)),
        ("metrics are sums, one number each", all(getattr(m, "numel", lambda: 1)() == 1 for m in metrics.values())),
        ("what it selects is one boolean a token", tuple(picked.shape) == (n,) and picked.dtype == torch.bool),
    ]


def sampler(spec: str, options: dict[str, Any]) -> Promises:
    """It draws several of the run's tasks, no others, and goes on alike from a saved state."""
    meta = {"solution": "first a step, then a second one, and so the answer"}
    tasks = {f"task-{i}": Task(f"task-{i}", f"problem {i}", str(1000 + i), f"source-{i % 3}", meta) for i in range(9)}
    sources = {task_id: task.source for task_id, task in tasks.items()}

    def make(seed: int) -> TaskSampler:
        tracker = ValueTracker()
        for i in range(9):
            tracker.observe(f"task-{i}", float(i % 2), event=i)
        given = {"tasks": tasks, "tracker": tracker, "sources": sources, "history": OutcomeHistory(sources, tracker)}
        made = registry.make("sampler", spec, options, task_ids=list(tasks), seed=seed, **given)
        return TaskSampler(list(tasks), made)

    one, two = make(1), make(2)
    one.learn(Outcome(f"task-{i % 9}", float(i % 9 > 6), 0.1 * (i % 3)) for i in range(54))
    drawn = {one.draw()[0] for _ in range(400)}
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    everything = Tasks(tasks.values())
    return [
        ("it draws tasks that there are, or forms of them", all(everything.find(task_id) for task_id in drawn)),
        ("it draws more than one", len(drawn) > 1),
        ("its state survives JSON", [one.draw() for _ in range(40)] == [two.draw() for _ in range(40)]),
    ]
