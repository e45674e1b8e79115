"""A chain of calls of which one decides, and a table policy whose gradient is exact.

Each turn is a thought (one of a few ways to say it, which changes nothing) and a call that chooses one of a few
options; the tool says which. Only the decisive turn's call matters: its right option is rewarded with probability .75,
the others with .25. All else is noise that outcome credit learns from as if it had done it. The logits of token t are
U + V_t: what one teaches reaches all, as in a model with one set of weights, so credit in the wrong place costs.
Trajectories, estimators and stages are the product's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from solostream.agent.trajectory import Dispatch, Trajectory, Turn
from solostream.envs.types import ToolCall
from solostream.sandbox.types import Execution

RIGHT, LUCK, SURE = 1, 0.25, 0.75  # the right option; probability of a reward without and with it
PROMPT = 2  # tokens


@dataclass(frozen=True, slots=True)
class Family:
    """settled: probability of option 0 in the calls on which nothing depends; 0: all are equally likely.

    paid: half of the reward comes at once with the decisive call, half at the end.
    """

    turns: int = 6
    options: int = 3
    decisive: int = 2  # its turn
    settled: float = 0.0
    paid: bool = False

    @property
    def token(self) -> int:
        """The place of the decisive call among the action tokens."""
        return 2 * self.decisive + 1


FAMILIES = {"even": Family(), "settled": Family(settled=0.9), "paid": Family(paid=True)}


@dataclass(slots=True)
class Policy:
    """weights [1 + 2·turns, options]: the logits that all tokens have in common, then each one's own."""

    family: Family
    weights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        f = self.family
        self.weights = np.zeros((1 + 2 * f.turns, f.options))
        if f.settled:
            calls = np.arange(1, 2 * f.turns, 2)
            others = 1 + calls[calls != f.token]
            self.weights[others, 0] = np.log(f.settled / ((1 - f.settled) / (f.options - 1)))

    def probabilities(self) -> np.ndarray:
        """[2·turns, options]."""
        logits = self.weights[0] + self.weights[1:]
        x = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(x / x.sum(1, keepdims=True))

    def right(self) -> float:
        """Probability of the decisive turn's right option."""
        return float(self.probabilities()[self.family.token, RIGHT])

    def play(self, dispatches: Sequence[tuple[str, Dispatch]], rng: np.random.Generator) -> list[Trajectory]:
        """One episode of each (task, dispatch)."""
        f, p = self.family, self.probabilities()
        n = len(dispatches)
        draw = rng.random((n, len(p), 1))
        chosen = np.minimum((p.cumsum(1)[None] < draw).sum(2), f.options - 1)  # [n, 2·turns]
        logp = np.log(p[np.arange(len(p)), chosen])  # [n, 2·turns]
        paid = rng.random(n) < np.where(chosen[:, f.token] == RIGHT, SURE, LUCK)
        return [
            ledger(f, row, logprobs, float(r), task, dispatch)
            for row, logprobs, r, (task, dispatch) in zip(chosen, logp, paid, dispatches, strict=True)
        ]

    def gradient(self, played: Sequence[Trajectory], advantages: Sequence[np.ndarray]) -> np.ndarray:
        """Σ A·∇log π over all action tokens, divided by their number, on each token's logits: [2·turns, options]."""
        p = self.probabilities()
        a = np.stack(advantages)  # [n, 2·turns]
        chosen = np.stack([t.token_ids[t.action_mask] for t in played])
        score = np.eye(self.family.options)[chosen] - p[None]  # [n, 2·turns, options]
        return np.asarray((a[..., None] * score).sum(0) / a.size)


def ledger(family: Family, chosen: np.ndarray, logp: np.ndarray, reward: float, task: str, of: Dispatch) -> Trajectory:
    """A trajectory: prompt, then thought, call and output of each turn; the last call ends the episode.

    chosen, logp: [2·turns].
    """
    n = PROMPT + 3 * family.turns - 1
    mask = np.ones(n, bool)
    mask[:PROMPT] = False
    mask[PROMPT + 2 :: 3] = False
    tokens, logprobs = np.zeros(n, np.int32), np.full(n, np.nan, np.float32)
    tokens[mask], logprobs[mask] = chosen, logp
    versions = np.where(mask, of.version, -1).astype(np.int32)
    turns = [Turn("user", 0, PROMPT, "go")]
    options = chosen.tolist()
    for t in range(family.turns):
        thought, option = options[2 * t : 2 * t + 2]
        last = t == family.turns - 1
        at_once = 0.5 * (option == RIGHT) if family.paid and t == family.decisive else 0.0
        outcome = (0.5 if family.paid else 1.0) * reward if last else 0.0
        turns += _turns(t, thought, option, at_once + outcome, last)
    total = float(sum(t.reward for t in turns))
    answer = str(options[family.token])
    told = {"dispatch": of, "source": "chain", "answer": answer}
    return Trajectory(task, tokens, mask, logprobs, versions, tuple(turns), total, "answered", **told)


@cache
def _turns(t: int, thought: int, option: int, reward: float, last: bool) -> list[Turn]:
    start = PROMPT + 3 * t
    call = ToolCall("choose", {"option": option}, (1, 2))
    text = f"{'.,;'[thought % 3]}{option}"
    turn = Turn("assistant", start, start + 2, text, (call,), (Execution(),), (start + 1,), False, reward)
    return [turn] if last else [turn, Turn("tool", start + 2, start + 3, f"took {option}")]
