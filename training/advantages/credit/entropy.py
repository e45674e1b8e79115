"""How uncertain the policy was, token by token, turn by turn, and right after a tool spoke; in nats.

`sampled`: −log π of the token that was drawn. Its expectation is the entropy, and it is there already: free.
`exact`: the entropy of the learner's distribution at each token, from one forward pass more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.credit.steps import spans

Source = Literal["sampled", "exact"]
Entropies = Callable[[Sequence[Trajectory]], Sequence[np.ndarray]]


def reader(source: Source, exact: Entropies | None) -> Entropies:
    """What gives each trajectory's entropies, float64 [action tokens]. exact: the learner's. Raises UserError."""
    if source == "sampled":
        return lambda batch: [sampled(trajectory) for trajectory in batch]
    if exact is None:
        raise UserError("entropy = 'exact' scores trajectories with the learner: give the stage its `entropies`")
    return exact


def sampled(trajectory: Trajectory) -> np.ndarray:
    """−log π of the sampled tokens, float64 [action tokens]."""
    entropy: np.ndarray = -trajectory.logprobs[trajectory.action_mask].astype(np.float64)
    return entropy


def of_turns(entropy: np.ndarray, trajectory: Trajectory) -> np.ndarray:
    """[action tokens] -> the mean of each turn of the policy; NaN for a turn without action tokens."""
    return np.array([entropy[s].mean() if s.stop > s.start else np.nan for s in spans(trajectory)], np.float64)


def after_tools(trajectory: Trajectory, k: int = 16, entropy: np.ndarray | None = None) -> list[float]:
    """The mean over the first k action tokens after each output of a tool; entropy: [action tokens], None: sampled."""
    values = sampled(trajectory) if entropy is None else entropy
    found, parts = [], iter(spans(trajectory))
    for n, turn in enumerate(trajectory.turns):
        if turn.role == "assistant":
            part = next(parts)
            if n and trajectory.turns[n - 1].role == "tool" and part.stop > part.start:
                found.append(float(values[part][:k].mean()))
    return found
