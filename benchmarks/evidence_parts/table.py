"""A policy whose gradient and whose accuracy are exact, and cheap enough for many seeds: tables of logits.

Tasks are of K kinds; what a kind has learnt is shared by its tasks, so learning carries over. An episode first chooses
a way, to guess (one token; right by luck) or to compute: S tokens, each right only as token 0. A wrong token is an
accident: from there on the policy is lost and writes garbage until it happens to stop. So wrong answers are long and
loud, as measured on the quickstart's model (docs/algorithms.md), and some tasks never pay whatever is written.
Difficulty: a task subtracts an offset of its own from the logit of every right token.

Everything else is the product's: trajectories, estimators, stages, tracker, sampler; the gradient is that of PPO-clip
on the policy that sampled, token-mean, with Adam; `several_steps.py` goes on from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from solostream.agent.trajectory import Dispatch, Trajectory, Turn
from solostream.training.advantages.base import Advantages

STEPS, TOKENS, GARBAGE = 4, 5, 12  # tokens of an answer; choices of a token; garbage at most
GUESS, COMPUTE = 1, 0  # choices of the first token


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind begins: probabilities of the way, of a right token, of a lucky guess."""

    compute: float
    right: float
    luck: float


@dataclass(frozen=True, slots=True)
class Population:
    kinds: tuple[Kind, ...]
    spread: float  # deviation of the tasks' offsets, in nats
    impossible: float  # share of the tasks that never pay


POPULATIONS = {
    # greedily every kind guesses; what it computes fails by accident: .35 right, as the quickstart after its cold start
    "equal": Population((Kind(0.45, 0.9, 0.1),) * 6, 0.1, 0.0),
    # easy, medium and hard kinds, two of each: right answers .9, .4 and .12 before the impossible are counted
    "mixed": Population(
        (Kind(0.95, 0.985, 0.1),) * 2 + (Kind(0.7, 0.83, 0.15),) * 2 + (Kind(0.4, 0.62, 0.1),) * 2, 0.5, 0.15
    ),
}


@dataclass(slots=True)
class Tasks:
    """n tasks: kind [n], offset [n], whether it can be solved [n]."""

    kind: np.ndarray
    offset: np.ndarray
    possible: np.ndarray

    @classmethod
    def draw(cls, population: Population, n: int, rng: np.random.Generator) -> Tasks:
        kind = np.arange(n) % len(population.kinds)
        return cls(kind, rng.normal(0, population.spread, n), rng.random(n) >= population.impossible)

    def ids(self) -> dict[str, str]:
        """Task id -> source."""
        return {f"t{i}": f"kind-{k}" for i, k in enumerate(self.kind)}


class TablePolicy:
    """Logits [rows, TOKENS]; a kind has a row for the way, STEPS rows, and one for being lost."""

    rows = STEPS + 2

    def __init__(self, population: Population) -> None:
        self.luck = np.array([k.luck for k in population.kinds])
        self.logits = np.zeros((len(population.kinds) * self.rows, TOKENS))
        for i, kind in enumerate(population.kinds):
            first = i * self.rows
            self.logits[first, :2] = math.log(kind.compute), math.log(1 - kind.compute)
            self.logits[first, 2:] = -np.inf  # two ways only
            self.logits[first + 1 : first + 1 + STEPS, 0] = math.log(kind.right / ((1 - kind.right) / (TOKENS - 1)))

    def probabilities(self, row: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """[n] rows, [n] offsets of the right token (0 where it has none) -> [n, TOKENS]."""
        x = self.logits[row].copy()
        x[:, 0] -= offset
        x = np.exp(x - x.max(1, keepdims=True))
        return x / x.sum(1, keepdims=True)

    def sample(self, tasks: Tasks, chosen: np.ndarray, rng: np.random.Generator) -> Episodes:
        """One episode of each chosen task [n]."""
        n, kind = len(chosen), tasks.kind[chosen]
        row, token, scores, offsets, alive = [], [], [], [], np.ones(n, bool)
        lost, guess, steps = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, int)
        for t in range(1 + STEPS + GARBAGE):
            at = kind * self.rows + np.where(lost, STEPS + 1, np.minimum(steps, STEPS))
            offset = np.where(lost | (steps == 0), 0.0, tasks.offset[chosen])
            p = self.probabilities(at, offset)
            a = np.minimum((p.cumsum(1) < rng.random((n, 1))).sum(1), TOKENS - 1)
            row.append(np.where(alive, at, -1))
            token.append(a)
            offsets.append(offset)
            scores.append(np.eye(TOKENS)[a] - p)
            if t == 0:
                guess = a == GUESS
                alive &= ~guess
            else:
                stopped = lost & (a == 0)
                lost |= alive & ~lost & (a != 0)
                alive &= ~stopped & ~(~lost & (steps >= STEPS))
            steps += 1
        lucky = guess & (rng.random(n) < self.luck[kind])
        right = ~guess & ~lost & tasks.possible[chosen]
        tokens = (np.stack(part, 1) for part in (row, token, offsets, scores))
        return Episodes(chosen, *tokens, (right | lucky).astype(float))

    def accuracy(self, tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
        """(sampled, greedy): probability of a right answer of each task, exact."""
        first, zero = tasks.kind * self.rows, np.zeros(len(tasks.kind))
        way = self.probabilities(first, zero)
        solved, surely = np.ones(len(zero)), np.ones(len(zero))
        for s in range(STEPS):
            p = self.probabilities(first + 1 + s, tasks.offset)
            solved *= p[:, 0]
            surely *= p.argmax(1) == 0
        luck, pays = self.luck[tasks.kind], tasks.possible
        sampled = way[:, COMPUTE] * solved * pays + way[:, GUESS] * luck
        return sampled, np.where(way[:, COMPUTE] >= way[:, GUESS], surely * pays, luck)

    def entropy(self, tasks: Tasks) -> float:
        """Of a token on the right way, in nats, the mean over tasks and tokens."""
        found = []
        for s in range(1 + STEPS):
            p = self.probabilities(tasks.kind * self.rows + s, tasks.offset * (s > 0))
            found.append(-(p * np.log(np.maximum(p, 1e-12))).sum(1).mean())
        return float(np.mean(found))


@dataclass(slots=True)
class Episodes:
    """n episodes: task [n]; row (−1: none), token and offset of the right one [n, T]; score e_a − π [n, T, TOKENS];
    reward [n].
    """

    task: np.ndarray
    row: np.ndarray
    token: np.ndarray
    offset: np.ndarray
    score: np.ndarray
    reward: np.ndarray

    def trajectories(self, dispatches: list[Dispatch], tasks: Tasks) -> list[Trajectory]:
        made = []
        for i, dispatch in enumerate(dispatches):
            n = int((self.row[i] >= 0).sum())
            p = 1 - self.score[i, np.arange(n), self.token[i, :n]]  # of the sampled token
            ids = np.concatenate([[0], self.token[i, :n] + 1]).astype(np.int32)
            acted = np.arange(n + 1) > 0
            logprobs = np.concatenate([[np.nan], np.log(np.maximum(p, 1e-12))]).astype(np.float32)
            versions = np.where(acted, dispatch.version, -1).astype(np.int32)
            turns = (Turn("user", 0, 1, ""), Turn("assistant", 1, n + 1, ""))
            where = {"dispatch": dispatch, "source": f"kind-{tasks.kind[self.task[i]]}"}
            task_id, reward = f"t{self.task[i]}", float(self.reward[i])
            made.append(Trajectory(task_id, ids, acted, logprobs, versions, turns, reward, "answered", **where))
        return made

    def drift(self, policy: TablePolicy) -> float:
        """Mean |log π now − log π that sampled| over the tokens, in nats: what a tracker forgets by."""
        which, t = np.nonzero(self.row >= 0)
        picked = np.arange(len(which)), self.token[which, t]
        now = policy.probabilities(self.row[which, t], self.offset[which, t])[picked]
        then = 1 - self.score[which, t][picked]
        return float(np.abs(np.log(now) - np.log(then)).mean())

    def gradient(self, advantages: Advantages, shape: tuple[int, ...]) -> np.ndarray:
        """Of the objective Σ A log π/Σ T, on the policy that sampled."""
        total = np.zeros(shape)
        tokens = sum(map(len, advantages.values))
        for i, a in enumerate(advantages.values):
            np.add.at(total, self.row[i, : len(a)], a[:, None] * self.score[i, : len(a)])
        return total / max(tokens, 1)
