"""Under which measure a batch is centred: one weight a trajectory, 0 for what the learner's filters take out.

`trajectory`  every one counts 1                         SPO, arXiv 2509.13232, Eq. 9
`token`       |T|, as the token-mean loss weighs it      SPO++, arXiv 2608.24870: Σ |T| Ã = 0
`energy`      Σ_t (1 − π_t)² over its action tokens      this project's

The energy stands for the squared norm of the trajectory's score: of a token's gradient on its own logits it is the
part of the sampled token, and the whole, 1 − 2π + Σπ², lies between it and twice it. The constant that minimises the
variance of a sum of A·score is the mean reward under that norm, E[‖s‖² r]/E[‖s‖²] (OPO, arXiv 2505.23585, takes the
length in its place; the optimal token baseline, arXiv 2602.07078, the whole). It costs nothing: π is the sampler's own.

The centre holds every trajectory's own weight. Where all weigh alike that shortens the gradient by 1 − 1/n and no more;
under the energy it shortens what loud answers add: a bias, towards right answers, for less noise (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from solostream.agent.trajectory import Trajectory
from solostream.training.batch import kept_of

Measure = Literal["token", "trajectory", "energy"]


def energy(trajectory: Trajectory) -> float:
    """Σ (1 − π)² over the action tokens; 0 for what was certain."""
    sampled = np.exp(trajectory.logprobs[trajectory.action_mask].astype(np.float64))
    return float(np.square(1 - sampled).sum())


def weights(batch: Sequence[Trajectory], measure: Measure) -> list[float]:
    """One weight a trajectory, in the order of `batch`."""
    of = {"token": lambda t: float(t.n_action_tokens), "trajectory": lambda t: 1.0, "energy": energy}[measure]
    return [of(t) if keep else 0.0 for t, keep in zip(batch, kept_of(batch), strict=True)]
