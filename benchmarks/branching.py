"""Branching against independent streams, at equal tokens and at equal sandbox seconds; a fork against a replay.

    python benchmarks/branching.py [--seeds 5] [--tokens 12000] [--quick]

A chain of five calls of which the second and the fourth must be right (one of four each), then an answer: success is
π₂(right)·π₄(right), 1/16 at the start. The policy is a table of logits, one row a turn, trained by the gradient of the
very advantages that training uses (`solostream.training.advantages`), on trees that the very strategies grow. Tokens
are those that were sampled, a shared beginning once. What a call, a new session, a fork and a replay cost is measured
on the `fork` sandbox first, for a call that is over at once and for one that computes; a run's sandbox seconds are its
counts of each times that. Printed: mean success over the budget (area under the curve) and at its end, means over seeds
with 95 % t intervals.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from solostream import registry
from solostream.agent.chat_template import Chat
from solostream.agent.engine import Generation, Sampling
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.agent.exploration.tree import leaves_of, sampled_once
from solostream.agent.rollout import rollout
from solostream.agent.tokenization import encode
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.envs.data import Tasks
from solostream.envs.types import Step, Task
from solostream.sandbox.fork import ForkSandbox
from solostream.training.advantages import estimator
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch

TURNS, OPTIONS, DECISIVE = 5, 4, (1, 3)
BATCH, RATE = 32, 3.0
SPO = {"spo": {"scale": "centred"}}  # as dr_grpo, which does not divide either
TASK = Task("chain", "Go.", "")
CALLS = {"at once": "x = 1", "computes": "x = sum(i * i for i in range(400_000))"}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}

# name -> (strategy, its options, leaves, estimator, stages, options of those)
METHODS: dict[str, tuple[str, dict[str, Any], int, str, tuple[str, ...], dict[str, Any]]] = {
    "independent streams, spo": ("episode", {}, 1, "spo", (), SPO),
    "independent groups of 8, dr_grpo": ("episode", {}, 8, "dr_grpo", (), {}),
    "arpo, 4 trunks, dr_grpo (soft)": ("arpo", {}, 8, "dr_grpo", (), {}),
    "arpo, 4 trunks, dr_grpo, arpo_attribution (hard)": ("arpo", {}, 8, "dr_grpo", ("arpo_attribution",), {}),
    "arpo, 4 trunks, dr_grpo, tree_po": ("arpo", {}, 8, "dr_grpo", ("tree_po",), {}),
    "aepo, dr_grpo": ("aepo", {}, 8, "dr_grpo", (), {}),
    "latr, dr_grpo": ("latr", {"distance": 0.1, "look_ahead": 8}, 8, "dr_grpo", (), {}),
    "arpo, 4 trunks, spo, tree_values": ("arpo", {}, 8, "spo", ("tree_values",), SPO),
    "arpo, 2 trunks, spo, tree_values": ("arpo", {"initial": 2}, 8, "spo", ("tree_values",), SPO),
    "segments, 1 trunk, spo, tree_values": ("segments", {}, 8, "spo", ("tree_values",), SPO),
    "segments, 1 trunk, spo, segment_po": ("segments", {}, 8, "spo", ("segment_po",), SPO),
}


class Chain:
    """The environment: five turns that each say an option. A copy of it is a copy of a list."""

    tasks, tools, stops = Tasks([TASK]), (), ()

    def __init__(self) -> None:
        self.task, self.trace, self.said = TASK, [], []

    def complete(self, text: str) -> int | None:
        return None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.trace, self.said = [], []
        return "Go.", {"task_id": TASK.id, "messages": ({"role": "user", "content": "Go."},)}

    async def areset(self, *, seed: Any = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        return self.reset(seed=seed, options=options)

    async def astep(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said.append(text)
        over = len(self.said) == TURNS
        reward = float(over and all(self.said[turn] == "call 0" for turn in DECISIVE))
        messages = () if over else ({"role": "user", "content": "done"},)
        self.trace.append(Step(text, (), (), messages, reward, "answered" if over else None, text))
        return "done", reward, over, False, {"messages": messages}

    async def fork(self) -> Chain:
        twin = Chain()
        twin.trace, twin.said = list(self.trace), list(self.said)
        return twin

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Policy:
    """An engine: logits [turns, options]; a turn's first token tells which option it takes, the rest is certain."""

    def __init__(self) -> None:
        self.tokenizer, self.version, self.unit = byte_tokenizer(), 0, "tokens"
        self.logits = np.zeros((TURNS, OPTIONS))
        self.texts = [[*encode(self.tokenizer, f"call {i}"), self.tokenizer.eos_token_id] for i in range(OPTIONS)]
        self.mark = encode(self.tokenizer, "done")

    def probabilities(self) -> np.ndarray:
        weights = np.exp(self.logits - self.logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    @property
    def success(self) -> float:
        return float(np.prod([self.probabilities()[turn, 0] for turn in DECISIVE]))

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        turn = list(prompt_ids).count(self.tokenizer.eos_token_id) - 1
        turn = (turn - 1) // 2 + 1 if turn else 0  # the prompt's end, then an action's and an answer's a turn
        row = self.probabilities()[turn]
        choice = random.Random(sampling.seed).choices(range(OPTIONS), row)[0]
        ids = self.texts[choice]
        return Generation(list(ids), [math.log(row[choice]), *[0.0] * (len(ids) - 1)], [0] * len(ids), "stop")

    async def release(self, key: str) -> None:
        pass

    def learn(self, batch: Sequence[Trajectory], advantages: Sequence[np.ndarray]) -> None:
        """One step along Σ A·∇log π over the tokens that chose, over their number."""
        probability, gradient, count = self.probabilities(), np.zeros_like(self.logits), 0
        for trajectory, values in zip(batch, advantages, strict=True):
            column = np.zeros(len(trajectory))
            column[trajectory.action_mask] = values
            spoken = [turn for turn in trajectory.turns if turn.role == "assistant"]
            for number, turn in enumerate(spoken):
                chosen = np.eye(OPTIONS)[int(turn.text.removeprefix("call "))]
                gradient[number] += column[turn.start] * (chosen - probability[number])
                count += 1
        self.logits += RATE * gradient / count * TURNS


@dataclass(slots=True)
class Counts:
    """What a run asked of the sandbox."""

    calls: int = 0
    sessions: int = 0
    forks: int = 0
    replayed: int = 0

    def add(self, leaf: Trajectory) -> None:
        spoken = [turn for turn in leaf.turns if turn.role == "assistant"]
        own_from = leaf.branch.own_from if leaf.branch else 0
        before = sum(turn.start < own_from for turn in spoken)
        self.calls += len(spoken) - before
        self.replayed += before
        self.forks += before > 0
        self.sessions += before == 0

    def seconds(self, cost: dict[str, float], how: str) -> float:
        """how: fork, or replay in a session of its own."""
        plain = self.calls * cost["call"] + self.sessions * cost["session"]
        again = self.replayed * cost["call"] + self.forks * cost["session"]
        return plain + (self.forks * cost["fork"] if how == "fork" else again)


async def run(method: str, seed: int, tokens: int, costs: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Success after each update, and what had been spent by then: tokens, and sandbox seconds by call and way."""
    strategy, options, leaves, advantage, stages, of_stages = METHODS[method]
    play: Callable[..., Any] = (
        rollout if strategy == "episode" else registry.bind("rollout", strategy, options, leaves=leaves)
    )
    policy, tracker, env, counts = Policy(), ValueTracker(), Chain(), Counts()
    judge = estimator(advantage, stages, of_stages, tracker, lambda batch: [])[-1]
    chat, spent, event, group = Chat(policy.tokenizer), 0, 0, 0
    curve: dict[str, list[float]] = {"success": [policy.success], "tokens": [0.0]}
    for name in costs:
        for how in ("fork", "replay"):
            curve[f"{name}, {how}"] = [0.0]
    while spent < tokens:
        batch: list[Trajectory] = []
        while len(batch) < BATCH:
            for _ in range(leaves if strategy == "episode" else 1):
                given = Dispatch(event, tracker.value(TASK.id), 0, group)
                episode = {"sampling": Sampling(40), "max_tokens": 2000, "task_id": TASK.id, "retries": 0}
                played = await play(env, policy, chat, dispatch=given, seed=seed * 1_000_003 + event, **episode)
                batch += leaves_of(played)
                event += len(leaves_of(played))
            group += 1
        spent += sampled_once(batch)
        for leaf in batch:
            counts.add(leaf)
        policy.learn(batch, judge(Batch(batch)).values)
        curve["success"].append(policy.success)
        curve["tokens"].append(spent)
        for name, cost in costs.items():
            for how in ("fork", "replay"):
                curve[f"{name}, {how}"].append(counts.seconds(cost, how))
    return curve


def area(curve: dict[str, list[float]], by: str, budget: float) -> tuple[float, float]:
    """(mean success over the budget, success at its end), along the straight lines between updates."""
    at = np.linspace(0, budget, 201)
    success = np.interp(at, curve[by], curve["success"])
    return float(success.mean()), float(success[-1])


async def measure(code: str, rounds: int) -> dict[str, float]:
    """Seconds of a call, of a session that has run one, and of a fork of it that has run one; less the calls."""
    sandbox = ForkSandbox(preimport=["math"])
    spent: dict[str, list[float]] = {"call": [], "session": [], "fork": []}

    async def timed(work: Any) -> tuple[float, Any]:
        begun = time.perf_counter()
        got = await work
        return time.perf_counter() - begun, got

    try:
        for _ in range(rounds):
            opening, session = await timed(sandbox.open())
            first, _ = await timed(session.run(code))
            call, _ = await timed(session.run(code))
            forking, copy = await timed(session.fork())
            again, _ = await timed(copy.run(code))
            closing, _ = await timed(copy.close())
            ending, _ = await timed(session.close())
            spent["call"].append(call)
            spent["session"].append(opening + max(first - call, 0) + ending)
            spent["fork"].append(forking + max(again - call, 0) + closing)
    finally:
        await sandbox.close()
    return {name: sorted(values)[len(values) // 2] for name, values in spent.items()}


def interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ± {T_95.get(len(values), 2.0) * stdev(values) / math.sqrt(len(values)):.3f}"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--quick", action="store_true", help="two seeds, a sixth of the tokens")
    options = parser.parse_args()
    seeds, tokens = (2, options.tokens // 6) if options.quick else (options.seeds, options.tokens)
    costs = {name: await measure(code, 9 if options.quick else 41) for name, code in CALLS.items()}
    for name, cost in costs.items():
        print(f"a call that {name}: " + ", ".join(f"{what} {1000 * s:.2f} ms" for what, s in cost.items()))
    curves = {method: [await run(method, seed, tokens, costs) for seed in range(seeds)] for method in METHODS}
    # Every method is judged over the seconds that the independent streams took for their tokens.
    plain = curves["independent streams, spo"]
    print(f"\n{seeds} seeds; budgets: {tokens:,} tokens, or the seconds of as many of the independent streams")
    print(
        "| | by tokens: mean | at the end | leaves | seconds, calls at once: fork | replay | computing: fork | replay |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for method, found in curves.items():
        row = [interval([area(c, "tokens", tokens)[i] for c in found]) for i in (0, 1)]
        row.append(f"{fmean(BATCH * (len(c['success']) - 1) * tokens / c['tokens'][-1] for c in found):.0f}")
        for name in CALLS:
            budget = fmean(c[f"{name}, fork"][-1] * tokens / c["tokens"][-1] for c in plain)
            for how in ("fork", "replay"):
                row.append(interval([area(c, f"{name}, {how}", budget)[0] for c in found]))
        print(f"| {method} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    asyncio.run(main())
