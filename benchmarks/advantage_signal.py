"""How much signal a batch carries: SPO, GRPO (G = 8) and no baseline, on one fixed policy (shapes of SPO's Fig. 3).

The policy is a real one, as `solostream eval MODEL -k 32` has recorded it (each prompt's outcomes are drawn again, with
their lengths), or the table of its success rates, one a prompt: p ~ Beta(a, a), which for small a is the U of a policy
that solves most prompts always or never. Trajectories, estimators, tracker and sampler are the trainer's own. The
tracker starts from 8 outcomes a prompt and warms up for some batches; GRPO gets as many trajectories in groups.

    python benchmarks/advantage_signal.py [--quick] [--policy EVAL_FOLDER] [--plot signal.png]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pvariance

sys.path.insert(0, str(Path(__file__).parents[1]))

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.training.advantages.base import Advantage
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.rollouts.task_sampler import TaskSampler

PROMPTS, BATCH, GROUP = 1000, 256, 8
POPULATIONS = {"U-shaped, Beta(0.15, 0.15)": 0.15, "U-shaped, Beta(0.25, 0.25)": 0.25, "uniform, Beta(1, 1)": 1.0}
Curve = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Prompt:
    rate: float  # of success
    play: Callable[[random.Random], tuple[float, int]]  # one episode: its reward, its length in action tokens


Prompts = dict[str, Prompt]  # by prompt id


def table(a: float, seed: int) -> Prompts:
    rng = random.Random(seed)

    def prompt(p: float) -> Prompt:
        return Prompt(p, lambda rng: (float(rng.random() < p), rng.randint(20, 200)))

    return {f"t{i}": prompt(rng.betavariate(a, a)) for i in range(PROMPTS)}


def recorded(folder: Path) -> Prompts:
    """From the samples of an evaluation: each prompt's own episodes, drawn with replacement."""
    seen: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for line in read_lines(folder / "samples.jsonl"):
        if line.trajectory is not None:
            seen[line.trajectory.task_id].append((line.trajectory.reward, line.trajectory.n_action_tokens))

    def prompt(episodes: list[tuple[float, int]]) -> Prompt:
        return Prompt(fmean(reward for reward, _ in episodes), lambda rng: rng.choice(episodes))

    return {task_id: prompt(episodes) for task_id, episodes in seen.items()}


def play(task_id: str, prompt: Prompt, dispatch: Dispatch, rng: random.Random) -> Trajectory:
    reward, tokens = prompt.play(rng)
    ledger = TokenRecord()
    ledger.add_observation("user", [1], "")
    ledger.add_action([2] * tokens, [-1.0] * tokens, [0] * tokens, "")
    return ledger.close(task_id, reward, "answered", dispatch=dispatch)


def run(
    policy: Prompts, estimator: Advantage, sampler: TaskSampler, tracker: ValueTracker, batches: int, seed: int
) -> Curve:
    rng, curve, event = random.Random(seed), [], 0
    for _ in range(batches):
        batch = []
        for _ in range(BATCH):
            task_id, group = sampler.draw()
            dispatch = Dispatch(event, tracker.value(task_id), 0, group)
            batch.append(play(task_id, policy[task_id], dispatch, rng))
            event += 1
        known = pvariance([t.reward - policy[t.task_id].rate for t in batch])
        curve.append({**estimator(batch).metrics, "known": known})
    return curve


def compare(policy: Prompts, batches: int, seed: int) -> dict[str, Curve]:
    rng, found = random.Random(seed), {}
    for name in ("prioritized", "uniform"):
        tracker = ValueTracker()
        for task_id, prompt in policy.items():
            tracker.initialize(task_id, [prompt.play(rng)[0] for _ in range(8)])
        sampler = TaskSampler(list(policy), tracker if name == "prioritized" else None, seed=seed)
        found[f"SPO, {name}"] = run(policy, SPO(tracker), sampler, tracker, batches, seed)
    grouped = TaskSampler(list(policy), streams=GROUP, seed=seed)
    found["GRPO"] = run(policy, GRPO(), grouped, ValueTracker(), batches, seed)
    return found


def until_mixed(p: float, rng: random.Random, rounds: int = 20_000) -> float:
    """Mean number of samples of one prompt until both outcomes have been seen."""
    total = 0
    for _ in range(rounds):
        first = rng.random() < p
        total += 2
        while (rng.random() < p) == first:
            total += 1
    return total / rounds


def late(curve: Curve, name: str) -> float:
    """The mean over the second half of a run: once warmed up."""
    return fmean(row[name] for row in curve[len(curve) // 2 :])


def plot(path: str, runs: dict[str, Curve], title: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, curve in runs.items():
        share = "advantage/degenerate" if name == "GRPO" else "advantage/near_zero"
        left.plot([row[share] for row in curve], label=f"{name}: {share.split('/')[1]}")
        right.plot([row["advantage/variance"] for row in curve], label=name)
    right.plot([row["reward/variance"] for row in runs["SPO, uniform"]], label="no baseline (raw reward)")
    left.set(title="Share without signal", xlabel="batch", ylim=(0, 1))
    right.set(title="Advantage variance", xlabel="batch")
    left.legend()
    right.legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer batches")
    parser.add_argument("--policy", type=Path, metavar="EVAL_FOLDER", help="a real policy's recorded samples, first")
    parser.add_argument("--plot", help="write the curves of the first population here")
    options = parser.parse_args()
    batches, seeds = (20, 1) if options.quick else (60, 3)
    header = ("no signal", "advantage var.", "reward var.", "ratio", "least ratio")
    print(f"{'second half of ' + str(batches) + ' batches':<30}" + "".join(f"{h:>16}" for h in header))
    policies = {title: [table(a, seed) for seed in range(seeds)] for title, a in POPULATIONS.items()}
    if options.policy:
        policies = {f"recorded, {options.policy.name}": [recorded(options.policy)] * seeds, **policies}
    for title, policy in policies.items():
        print(title)
        runs = [compare(policy[seed], batches, seed) for seed in range(seeds)]
        for name in runs[0]:
            share = "advantage/degenerate" if name == "GRPO" else "advantage/near_zero"
            none, variance, raw, known = (
                fmean(late(run_[name], key) for run_ in runs)
                for key in (share, "advantage/variance", "reward/variance", "known")
            )
            ratios = f"{variance / raw:16.2f}{known / raw:16.2f}"
            print(f"  {name:<28}{none:16.3f}{variance:16.3f}{raw:16.3f}{ratios}")
        if options.plot and title == next(iter(policies)):
            plot(options.plot, runs[0], title)
    print(
        "success rate p: degenerate groups p^8 + (1 - p)^8; samples until a mixed outcome 1/(p(1 - p)) - 1, simulated"
    )
    for p in (0.5, 0.3, 0.1, 0.03):
        degenerate, expected = p**GROUP + (1 - p) ** GROUP, 1 / (p * (1 - p)) - 1
        print(f"  {p:<6}{degenerate:10.3f}{expected:10.2f}{until_mixed(p, random.Random(0)):10.2f}")
    print(
        "no signal: SPO |A| <= 0.02, GRPO groups of one outcome; ratio: to the variance of the same batch's rewards\n"
        "least ratio: that of a baseline that knows every prompt's success rate"
    )
    print("bars: SPO's share under half of GRPO's, ratio <= 0.7")


if __name__ == "__main__":
    main()
