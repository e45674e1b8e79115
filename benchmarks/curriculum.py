"""How many trajectories and tokens each curriculum needs for 80 % on a mixture of sources.

    python benchmarks/curriculum.py [--seeds 5] [--budget 40000] [--lr 0.05] [--methods spo dump …] [--out FILE.md]

The product's samplers, tracker, estimators and dynamic sampling, on a policy whose gradient and accuracy are exact: a
table. Five sources of 24 problems each have a skill of their own: solved at first .9, .4, .08, .0005 of the time, and
never. An answer is a chain of four tokens of five choices, right when all are; a problem shifts the logit of the right
tokens by an amount of its own. A form of a problem uses the same skill: `hint=ω` gives the first 4ω tokens, `choice=4`,
`choice=10` and `cloze` are easier by 2, 1.4 and .7 nats a token (an assumption, not a measurement of language models).
Accuracy is that of the plain problems which can be solved, exact; its goal is .8. What the tracker's start and dynamic
sampling spend is counted.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from evidence_parts.statistics import interval
from evidence_parts.table_run import Adam

from solostream import registry
from solostream.agent.trajectory import Dispatch, Trajectory, Turn
from solostream.envs.data.forms import MARK, base_of
from solostream.envs.types import Task
from solostream.training.advantages import estimator
from solostream.training.advantages.base import Advantages
from solostream.training.batch import Batch
from solostream.training.config import assign, validate
from solostream.training.rollouts.dynamic_sampling import DynamicSampling
from solostream.training.rollouts.samplers.history import Outcome, OutcomeHistory
from solostream.training.rollouts.task_sampler import TaskSampler

STEPS, TOKENS, EACH, BATCH, GOAL = 4, 5, 24, 64, 0.8
SOURCES = {"easy": 0.9, "medium": 0.4, "hard": 0.08, "hopeless": 0.0005, "impossible": 0.4}
EASE = {"choice=4": 2.0, "choice=10": 1.4, "cloze": 0.7}
SPO = ("algorithm.advantage=spo", "algorithm.stages=[]")
GRPO = ("algorithm.advantage=grpo", "algorithm.stages=[]", "algorithm.group_size=8")
METHODS: dict[str, tuple[str, ...]] = {
    "spo uniform": (*SPO, "algorithm.sampler=uniform"),
    "spo prioritized": (*SPO, "algorithm.sampler=prioritized"),
    "spo dump": (*SPO, "algorithm.sampler=dump"),
    "spo bands": (*SPO, "algorithm.sampler=bands"),
    "spo hints": (*SPO, "algorithm.sampler=hints"),
    "spo hints of prioritized": (*SPO, "algorithm.sampler=hints", "sampler.hints.of=prioritized"),
    "spo reformulate": (*SPO, "algorithm.sampler=reformulate"),
    "grpo uniform": GRPO,
    "grpo dump": (*GRPO, "algorithm.sampler=dump"),
    "grpo bands": (*GRPO, "algorithm.sampler=bands"),
    "grpo hints": (*GRPO, "algorithm.sampler=hints"),
    "grpo dynamic": (*GRPO, "algorithm.dynamic_sampling=4"),
    "passk": ("algorithm.advantage=passk", *GRPO[1:]),
    "passk dynamic": ("algorithm.advantage=passk", *GRPO[1:], "algorithm.dynamic_sampling=4"),
}


class Policy:
    """Logits [source, step, token]; token 0 is right."""

    def __init__(self, shift: np.ndarray) -> None:
        self.logits = np.zeros((len(SOURCES), STEPS, TOKENS))
        self.shift = shift  # [source, problem]
        for i, solved in enumerate(SOURCES.values()):
            right = solved ** (1 / STEPS)
            self.logits[i, :, 0] = math.log(right / (1 - right) * (TOKENS - 1))

    def probabilities(self, source: int, shift: float) -> np.ndarray:
        """[step, token]"""
        x = self.logits[source].copy()
        x[:, 0] += shift
        x = np.exp(x - x.max(1, keepdims=True))
        return x / x.sum(1, keepdims=True)

    def accuracy(self) -> np.ndarray:
        """[source]: the mean over its plain problems, exact; 0 for the impossible."""
        found = [
            np.mean([self.probabilities(i, d)[:, 0].prod() for d in self.shift[i]]) for i in range(len(SOURCES) - 1)
        ]
        return np.array([*found, 0.0])

    def play(self, task_id: str, rng: np.random.Generator) -> Episode:
        """One episode of a task or of a form of it."""
        form = task_id.partition(MARK)[2]
        source, problem = map(int, base_of(task_id).split("/"))
        given = round(STEPS * float(form[5:])) if form.startswith("hint") else 0
        shift = self.shift[source, problem] + EASE.get(form, 0.0)
        p = self.probabilities(source, shift)[given:]
        token = np.minimum((p.cumsum(1) < rng.random((len(p), 1))).sum(1), TOKENS - 1)
        solvable = source < len(SOURCES) - 1
        return Episode(source, shift, given, token, p, float(solvable and not token.any()))


@dataclass(slots=True)
class Episode:
    """token [n], probabilities [n, TOKENS] of the n = STEPS − given tokens."""

    source: int
    shift: float
    given: int
    token: np.ndarray
    p: np.ndarray
    reward: float

    def moved(self, policy: Policy) -> np.ndarray:
        """|Δ log π| of its tokens since it was sampled [n], in nats."""
        at = np.arange(len(self.token)), self.token
        return np.abs(np.log(policy.probabilities(self.source, self.shift)[self.given :][at]) - np.log(self.p[at]))

    def trajectory(self, task_id: str, dispatch: Dispatch) -> Trajectory:
        """As the product's: one prompt token, then the answer."""
        n = len(self.token)
        ids = np.concatenate([[0], self.token + 1]).astype(np.int32)
        acted = np.arange(n + 1) > 0
        logprobs = np.concatenate([[np.nan], np.log(self.p[np.arange(n), self.token])]).astype(np.float32)
        versions = np.where(acted, dispatch.version, -1).astype(np.int32)
        turns = (Turn("user", 0, 1, ""), Turn("assistant", 1, n + 1, ""))
        return Trajectory(task_id, ids, acted, logprobs, versions, turns, self.reward, "answered", dispatch)


@dataclass(slots=True)
class Spent:
    """What a run took until the goal; None: not within the budget."""

    trajectories: int | None = None
    tokens: int | None = None
    accuracy: list[float] = field(default_factory=list)  # of each source, at the end
    curve: list[tuple[int, float]] = field(default_factory=list)


class Run:
    """One method on one population."""

    def __init__(self, settings: tuple[str, ...], seed: int, lr: float) -> None:
        self.config = validate(assign({}, [*settings, f"rollout.batch={BATCH}", "rollout.mode=sync"]))
        a = self.config.algorithm
        rng = np.random.default_rng((seed, 0))
        self.policy = Policy(rng.normal(0, 0.5, (len(SOURCES), EACH)))
        self.adam, self.rng = Adam(self.policy.logits.shape, lr), np.random.default_rng((seed, 1))
        ids = {f"{s}/{i}": name for s, name in enumerate(SOURCES) for i in range(EACH)}
        tasks = {
            task_id: Task(task_id, task_id, f"{1000 + i}", name, {"solution": "one, two, three, four. done"})
            for i, (task_id, name) in enumerate(ids.items())
        }
        self.tracker = a.tracker.make()
        history = OutcomeHistory(ids, self.tracker if a.uses_tracker else None)
        given: dict[str, Any] = {"task_ids": list(ids), "tasks": tasks, "tracker": self.tracker, "sources": ids}
        options = self.config.sampler.get(a.task_sampler)
        made = registry.make(
            "sampler", a.task_sampler, options, **given, history=history, seed=seed, batch=BATCH // a.group_size
        )
        self.sampler = TaskSampler(list(ids), made, streams=a.group_size)
        self.estimator = estimator(a.advantage, a.stages, a.options, self.tracker, lambda batch: [])[-1]
        self.dynamic = DynamicSampling(round(a.dynamic_sampling * BATCH)) if a.dynamic_sampling else None
        self.streams, self.grouped = a.group_size, a.grouped  # asked once: the configuration looks them up
        self.event, self.version, self.trajectories, self.tokens = 0, 0, 0, 0

    def start(self) -> None:
        """One outcome a problem for the tracker, as the product does."""
        if self.config.algorithm.uses_tracker:
            for source in range(len(SOURCES)):
                for problem in range(EACH):
                    task_id = f"{source}/{problem}"
                    self.tracker.initialize(task_id, [self._play(task_id).reward], version=0)

    def _play(self, task_id: str) -> Episode:
        episode = self.policy.play(task_id, self.rng)
        self.trajectories += 1
        self.tokens += len(episode.token)
        return episode

    def _group(self) -> list[tuple[Episode, Trajectory]]:
        found = []
        for _ in range(self.streams):
            task_id, group = self.sampler.draw()
            value = self.tracker.value(task_id)
            dispatch = Dispatch(self.event, value, self.version, group if self.grouped else None)
            self.event += 1
            episode = self._play(task_id)
            found.append((episode, episode.trajectory(task_id, dispatch)))
        return found

    def step(self) -> None:
        """One batch and one update."""
        taken: list[tuple[Episode, Trajectory]] = []
        left_out: list[Trajectory] = []
        while len(taken) < BATCH:
            group = self._group()
            if self.dynamic is not None and self.dynamic.discards([t for _, t in group]):
                left_out += [t for _, t in group]
            else:
                taken += group
        if self.dynamic is not None:
            self.dynamic.taken()
        advantages = self.estimator(Batch(t for _, t in taken))
        self.adam.step(self.policy.logits, self._gradient([e for e, _ in taken], advantages))
        sizes = [float(np.abs(a).mean()) for a in advantages.values]
        self.sampler.learn(
            [
                *(Outcome(t.task_id, t.reward, 0.0) for t in left_out),
                *(Outcome(t.task_id, t.reward, size) for (_, t), size in zip(taken, sizes, strict=True)),
            ]
        )
        self.version += 1
        self.tracker.record_drift(
            self.version, float(np.mean(np.concatenate([e.moved(self.policy) for e, _ in taken])))
        )

    def _gradient(self, episodes: list[Episode], advantages: Advantages) -> np.ndarray:
        total = np.zeros(self.policy.logits.shape)
        for episode, a in zip(episodes, advantages.values, strict=True):
            total[episode.source, episode.given :] += a[:, None] * (np.eye(TOKENS)[episode.token] - episode.p)
        return total / max(sum(map(len, advantages.values)), 1)


def play(settings: tuple[str, ...], seed: int, lr: float, budget: int) -> Spent:
    """Until the goal is reached, or the budget of trajectories spent."""
    run, spent = Run(settings, seed, lr), Spent()
    run.start()
    while run.trajectories < budget:
        accuracy = run.policy.accuracy()
        mean = float(accuracy[:-1].mean())
        spent.curve.append((run.trajectories, mean))
        if mean >= GOAL:
            spent.trajectories, spent.tokens = run.trajectories, run.tokens
            break
        run.step()
    spent.accuracy = run.policy.accuracy().tolist()
    return spent


def row(name: str, found: list[Spent], budget: int) -> str:
    """One line of the table; a run that did not get there counts as the budget, and is said."""
    reached = [one for one in found if one.trajectories is not None]
    cells = []
    for what in ("trajectories", "tokens"):
        values = [float(getattr(one, what)) for one in reached]
        if len(reached) == len(found):
            mean, half = interval(values)
            cells.append(f"{mean:,.0f} ± {half:,.0f}")
        else:
            cells.append(f"{len(reached)} of {len(found)} runs" if what == "trajectories" else "–")
    end = np.mean([one.accuracy for one in found], axis=0)
    return f"| {name} | {' | '.join(cells)} | {' '.join(f'{x:.2f}' for x in end[:-1])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=40_000)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        f"| method | trajectories to {GOAL:.0%} | tokens | accuracy at the end: {', '.join(list(SOURCES)[:-1])} |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in args.methods:
        found = [play(METHODS[name], seed, args.lr, args.budget) for seed in range(args.seeds)]
        lines.append(row(name, found, args.budget))
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
