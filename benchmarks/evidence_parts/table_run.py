"""One run of a method on a table policy: what is spent, what is learnt, how noisy its gradient is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solostream import registry
from solostream.agent.trajectory import Dispatch
from solostream.training.advantages import estimator
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.config import Config, assign, validate
from solostream.training.rollouts.task_sampler import TaskSampler

from .methods import METHODS, PROTOCOL
from .table import POPULATIONS, Episodes, TablePolicy, Tasks

Judge = Callable[[Episodes, np.ndarray], Advantages]
Improve = Callable[[TablePolicy, Episodes, Advantages, "Adam"], None]
BATCH, POOL, HELD_OUT = 64, 128, 256
BETAS = (0.9, 0.95)  # the product's
LEAST = "r − b, the best constant b"


def configure(method: str, extra: Sequence[str] = ()) -> Config:
    given = (*PROTOCOL, f"rollout.batch={BATCH}", *METHODS[method].settings, *extra)
    return validate(assign({}, [setting for setting in given if setting]))


def start_episodes(method: str) -> int:
    """How many episodes `method` plays before its first step."""
    a = configure(method).algorithm
    return POOL * a.tracker.start_samples if a.uses_tracker else 0


class Adam:
    """On one array, uphill; the product's is torch's AdamW without weight decay, the same numbers."""

    def __init__(self, shape: tuple[int, ...], lr: float) -> None:
        self.lr, self.t = lr, 0
        self.m, self.v = np.zeros(shape), np.zeros(shape)

    def step(self, weights: np.ndarray, gradient: np.ndarray) -> None:
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * gradient
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * gradient**2
        m, v = self.m / (1 - BETAS[0] ** self.t), self.v / (1 - BETAS[1] ** self.t)
        weights += self.lr * m / (np.sqrt(v) + 1e-8)


@dataclass(slots=True)
class Curve:
    """At each number of episodes spent: exact accuracies on held-out tasks, and what the batch looked like."""

    episodes: list[int] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    greedy: list[float] = field(default_factory=list)
    pass8: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    value_error: list[float] = field(default_factory=list)  # RMS of tracked value − exact rate over the pool
    no_signal: list[float] = field(default_factory=list)  # degenerate groups, or |A| ≤ .02
    metrics: dict[str, float] = field(default_factory=dict)  # of the last batch


class Player:
    """The product's estimator, tracker and sampler of one method, on the tasks of a table policy."""

    def __init__(self, config: Config, tasks: Tasks, seed: int) -> None:
        a, ids = config.algorithm, tasks.ids()
        self.config, self.tasks, self.group, self.grouped = config, tasks, a.group_size, a.grouped
        self.tracker = a.tracker.make()
        for task_id, source in ids.items():
            self.tracker.place(task_id, source)
        self.estimator = estimator(a.advantage, a.stages, a.options, self.tracker, lambda batch: [])[-1]
        self.shuffle(seed)
        self.event = 0

    def shuffle(self, seed: int) -> None:
        """Draw tasks in another order from now on."""
        a, ids = self.config.algorithm, list(self.tasks.ids())
        given = {"task_ids": ids, "tracker": self.tracker, "seed": seed, "batch": BATCH // self.group}
        self.sampler = TaskSampler(ids, registry.make("sampler", a.task_sampler, {}, **given), streams=a.group_size)

    def start(self, policy: TablePolicy, rng: np.random.Generator) -> int:
        """Initialise the tracker; how many episodes that took."""
        n = self.config.algorithm.tracker.start_samples if self.config.algorithm.uses_tracker else 0
        if n:
            chosen = np.repeat(np.arange(POOL), n)
            rewards = policy.sample(self.tasks, chosen, rng).reward.reshape(POOL, n)
            for i in range(POOL):
                self.tracker.initialize(f"t{i}", rewards[i].tolist(), version=0)
        return n * POOL

    def batch(self, policy: TablePolicy, version: int, rng: np.random.Generator) -> tuple[Any, Advantages]:
        """(episodes, advantages) of one batch under `policy`; the tracker learns from it."""
        chosen, dispatches = [], []
        for _ in range(BATCH):
            task_id, group = self.sampler.draw()
            group = group if self.grouped else None
            dispatches.append(Dispatch(self.event, self.tracker.value(task_id), version, group))
            chosen.append(int(task_id[1:]))
            self.event += 1
        episodes = policy.sample(self.tasks, np.array(chosen), rng)
        return episodes, self.estimator(Batch(episodes.trajectories(dispatches, self.tasks)))


def one_step(policy: TablePolicy, episodes: Episodes, advantages: Advantages, adam: Adam) -> None:
    """On the policy that sampled, where no clip acts."""
    adam.step(policy.logits, episodes.gradient(advantages, policy.logits.shape))


def play(
    population: str,
    method: str,
    lr: float,
    seed: int,
    budget: int,
    judge: Judge | None = None,
    improve: Improve = one_step,
) -> Curve:
    """`budget` episodes in all, the start's among them. Tasks and first policy are the seed's, whatever the method.

    judge: (episodes, exact success rate of each) -> advantages in the place of the method's. improve: the steps of a
    batch.
    """
    made = POPULATIONS[population]
    tasks, held_out = (Tasks.draw(made, n, np.random.default_rng((seed, i))) for i, n in enumerate((POOL, HELD_OUT)))
    rng, policy = np.random.default_rng((seed, 2)), TablePolicy(made)
    player, adam, curve = Player(configure(method), tasks, seed), Adam(policy.logits.shape, lr), Curve()
    _look(curve, 0, policy, held_out, player)
    spent, version = player.start(policy, rng), 0
    while spent + BATCH <= budget:
        rates = policy.accuracy(tasks)[0]
        episodes, advantages = player.batch(policy, version, rng)
        if judge is not None:
            advantages = judge(episodes, rates[episodes.task])
        improve(policy, episodes, advantages, adam)
        spent, version = spent + BATCH, version + 1
        player.tracker.record_drift(version, episodes.drift(policy))
        _look(curve, spent, policy, held_out, player)
        m = advantages.metrics
        curve.no_signal += no_signal(m)
        curve.metrics = {name: float(x) for name, x in m.items()}
    return curve


def no_signal(metrics: Mapping[str, float]) -> list[float]:
    """The share of a batch that teaches nothing, where its estimator says so: degenerate groups, or |A| ≤ .02."""
    names = [name for name in ("advantage/degenerate", "advantage/near_zero") if name in metrics]
    return [metrics[name] for name in names[:1]]


def _look(curve: Curve, spent: int, policy: TablePolicy, held_out: Tasks, player: Player) -> None:
    sampled, greedy = policy.accuracy(held_out)
    curve.episodes.append(spent)
    curve.sampled.append(float(sampled.mean()))
    curve.greedy.append(float(greedy.mean()))
    curve.pass8.append(float((1 - (1 - sampled) ** 8).mean()))
    curve.entropy.append(policy.entropy(held_out))
    if player.config.algorithm.uses_tracker:
        rate = policy.accuracy(player.tasks)[0]
        values = np.array([player.tracker.value(f"t{i}") for i in range(POOL)])
        curve.value_error.append(float(np.sqrt(np.mean((values - rate) ** 2))))


def noise(
    population: str, methods: Sequence[str], seed: int, *, checkpoints: Sequence[int], lr: float = 0.1, draws: int = 128
) -> dict[str, list[float]]:
    """Method -> noise of its batch gradient at each checkpoint: tr Cov(G)/|E G|², over `draws` batches of one policy.

    All methods look at one policy, which the batch mean trains; each estimator and tracker sees a batch of its own at
    every step. Prompts are uniform for all, so that E G points the same way.
    """
    made = POPULATIONS[population]
    tasks = Tasks.draw(made, POOL, np.random.default_rng((seed, 0)))
    rng, policy = np.random.default_rng((seed, 3)), TablePolicy(made)
    players = {name: Player(configure(name, ("algorithm.sampler=uniform",)), tasks, seed) for name in methods}
    for player in players.values():
        player.start(policy, rng)
    leader, adam = Player(configure("batch"), tasks, seed), Adam(policy.logits.shape, lr)
    found: dict[str, list[float]] = {name: [] for name in methods}
    for step in range(max(checkpoints) + 1):
        if step in checkpoints:
            for name, player in players.items():
                found[name].append(_noise(player, policy, step, rng, draws))
            found.setdefault(LEAST, []).append(_least(policy, tasks, rng, draws))
        for player in players.values():
            player.batch(policy, step, rng)
        episodes, advantages = leader.batch(policy, step, rng)
        one_step(policy, episodes, advantages, adam)
        for player in players.values():
            player.tracker.record_drift(step + 1, episodes.drift(policy))
    return found


def _noise(player: Player, policy: TablePolicy, step: int, rng: np.random.Generator, draws: int) -> float:
    gradients = []
    for draw in range(draws):
        one = copy.deepcopy(player)
        one.shuffle(draw)  # which tasks a batch has is a part of its noise
        episodes, advantages = one.batch(policy, step, rng)
        gradients.append(episodes.gradient(advantages, policy.logits.shape).ravel())
    return _relative(np.nan_to_num(np.array(gradients)))


def _least(policy: TablePolicy, tasks: Tasks, rng: np.random.Generator, draws: int) -> float:
    """The noise of A = r − b at the constant b that has the least."""
    gradients = []
    for _ in range(draws):
        episodes = policy.sample(tasks, rng.choice(POOL, BATCH, replace=False), rng)
        lengths = (episodes.row >= 0).sum(1)
        for each in (episodes.reward, np.ones(BATCH)):  # what b multiplies is the gradient of A = 1
            advantages = Advantages([np.full(n, a) for n, a in zip(lengths, each, strict=True)])
            gradients.append(episodes.gradient(advantages, policy.logits.shape).ravel())
    of_reward, of_one = np.nan_to_num(np.array(gradients[::2])), np.nan_to_num(np.array(gradients[1::2]))
    centred = of_one - of_one.mean(0)
    b = ((of_reward - of_reward.mean(0)) * centred).sum() / (centred**2).sum()
    return _relative(of_reward - b * of_one)


def _relative(gradients: np.ndarray) -> float:
    """tr Cov/|mean|² of the rows."""
    variance = gradients.var(0, ddof=1).sum()
    signal = max(float((gradients.mean(0) ** 2).sum() - variance / len(gradients)), 1e-12)  # |mean|² has some noise
    return float(variance / signal)
