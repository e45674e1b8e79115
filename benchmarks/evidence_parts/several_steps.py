"""Several optimizer steps a batch, where the ratio leaves 1: does a clip stand in for a weight on wrong answers?

The table policy, the product's PPO-clip. Its derivative by a token's log-probability is torch's, the score of the token
under the policy of the moment is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np
import torch

from solostream.training.advantages.base import Advantages
from solostream.training.losses.ppo_clip import PPOClip
from solostream.training.losses.tokens import Tokens

from .cells import Cells
from .methods import METHODS
from .statistics import area, interval, said
from .table import TOKENS, Episodes, TablePolicy
from .table_run import Adam, play
from .tuning import best_rate

STEPS, BUDGET, SEEDS, TUNING_SEEDS = 8, 2560, range(10), (100, 101)
RATES = (0.01, 0.03, 0.1, 0.3)
CONTESTANTS = ("none", "batch", "grpo", "ours", "ours_negative", "ours_tokens")
FREE = 1e9
CLIPS = {
    "no bound": PPOClip(1.0, FREE, 0.0),
    "ε = .1": PPOClip(0.1, 0.1, 0.0),
    "ε = .2, .28, dual 10": PPOClip(),
    "ε = .2, .28, dual 2": PPOClip(dual_clip=2.0),
}


@dataclass(slots=True)
class Steps:
    """What improves the policy: `STEPS` steps a batch under `loss`; it counts what the clips cut."""

    loss: PPOClip
    rng: np.random.Generator
    seen: int = 0
    cut: float = 0.0

    def __call__(self, policy: TablePolicy, episodes: Episodes, advantages: Advantages, adam: Adam) -> None:
        for members in np.array_split(self.rng.permutation(len(episodes.task)), STEPS):
            adam.step(policy.logits, self.gradient(policy, episodes, advantages, members))

    def gradient(
        self, policy: TablePolicy, episodes: Episodes, advantages: Advantages, members: np.ndarray
    ) -> np.ndarray:
        """Of the objective, the mean over the tokens of `members`, at the policy of now; the shape of its logits."""
        lengths = (episodes.row[members] >= 0).sum(1)
        tokens = np.concatenate([np.arange(n) for n in lengths])
        which = np.repeat(members, lengths)
        row, token, offset = (part[which, tokens] for part in (episodes.row, episodes.token, episodes.offset))
        picked = np.arange(len(token)), token
        old = 1 - episodes.score[which, tokens][picked]
        p = policy.probabilities(row, offset)
        logprob = torch.tensor(np.log(p[picked]), requires_grad=True)
        a = np.concatenate([advantages.values[i] for i in members])
        segment = torch.tensor(np.repeat(np.arange(len(members)), lengths))
        none = torch.zeros(len(a), dtype=torch.bool)
        loss, counts = self.loss(
            Tokens(logprob, torch.tensor(np.log(old)), torch.tensor(a), segment, len(members), none)
        )
        (slope,) = torch.autograd.grad(-loss.mean(), logprob)
        self.seen += len(a)
        self.cut += float(sum(counts.values()))
        total = np.zeros(policy.logits.shape)
        np.add.at(total, row, slope.numpy()[:, None] * (np.eye(TOKENS)[token] - p))
        return total


def found(cells: Cells, population: str, method: str, clip: str) -> tuple[float, list[dict]]:
    """(the rate that was tuned, the curves of the seeds with the share of tokens cut as `cut`)."""

    def curve(rate: float, seed: int, budget: int) -> dict:
        def run() -> dict:
            steps = Steps(CLIPS[clip], np.random.default_rng((seed, 4)))
            curve = play(population, method, rate, seed, budget, improve=steps)
            return {**asdict(curve), "cut": steps.cut / max(steps.seen, 1)}

        return cells.get(("steps", population, method, clip, rate, seed, budget), run)

    def score(rate: float, seed: int, share: float) -> float:
        return _area(curve(rate, seed, round(BUDGET * share)), "sampled")

    key = ("steps rate", population, method, clip, list(RATES), BUDGET)
    rate = cells.get(key, lambda: best_rate(score, RATES, TUNING_SEEDS))
    return rate, [curve(rate, seed, BUDGET) for seed in SEEDS]


def table(cells: Cells, population: str) -> Iterator[str]:
    """One row a method and clip; the last column: what it has in area over ours with negatives × ¼ and no bound."""
    yield (
        "| method | clip | lr | area, sampled | greedy | at the end, sampled | its least | greedy | tokens cut "
        "| − negatives × ¼ without a bound |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    wanted = [_area(one, "sampled") for one in found(cells, population, "ours_negative", "no bound")[1]]
    for method in CONTESTANTS:
        for clip in CLIPS:
            rate, curves = found(cells, population, method, clip)
            areas = [_area(one, "sampled") for one in curves]
            ends = [one["sampled"][-1] for one in curves]
            mean, half = interval([a - b for a, b in zip(areas, wanted, strict=True)])
            figures = (
                said(areas), said([_area(one, "greedy") for one in curves]), said(ends), f"{min(ends):.2f}",
                said([one["greedy"][-1] for one in curves]), f"{fmean(one['cut'] for one in curves):.1%}",
                f"{mean:+.3f} ± {half:.3f}",
            )  # fmt: skip
            yield f"| {METHODS[method].title} | {clip} | {rate:g} | {' | '.join(figures)} |"


def _area(curve: dict, what: str) -> float:
    return area(list(zip(curve["episodes"], curve[what], strict=True)), curve["episodes"][-1])
