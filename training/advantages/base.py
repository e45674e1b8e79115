"""Advantages: the protocol that estimators share, and the two pure functions behind SPO++ and ASPO.

`standardize` (SPO++, arXiv 2608.24870): the loss is a mean over action tokens, so the batch is centred under that
measure. With w_i = |T(y_i)|:  μ = Σ w A / Σ w,  σ² = Σ w (A − μ)² / Σ w,  Ã = (A − μ)/σ,  hence Σ w Ã = 0. Without
weights it is SPO's Eq. 9 (arXiv 2509.13232): population mean and deviation over trajectories.

`shape_early_calls` (ASPO, arXiv 2508.19201, Eq. 2): for trajectories that are correct and contain code,
A ← A + clip(δ·(p − mean p)/mean L, −k·A, +k·A); p is the token position of the first call, L the response length.
Departures: no shaping where A ≤ 0 (the bounds would cross) and none with fewer than two eligible trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np

from solostream.errors import UserError
from solostream.training.batch import Batch

Numbers = TypeVar("Numbers")  # a list of floats or a 1-d tensor; what comes in goes out


@dataclass(frozen=True, slots=True, eq=False)
class Advantages:
    """`values[i]`: float64 [action tokens of trajectory i], what each of them is weighed with."""

    values: list[np.ndarray]
    metrics: dict[str, float] = field(default_factory=dict)


# Of the answers to one prompt: not compared, compared where there are several, compared always.
Grouping = Literal["none", "optional", "required"]
# Of episodes that branched: judged as any other, the very subject, or nothing that its mathematics allows.
Trees = Literal["allowed", "required", "refused"]


@runtime_checkable
class Advantage(Protocol):
    """An estimator, or a stage around one: `ASPO(SPO(tracker))`.

    An attribute `groups: Grouping` says that it compares the answers to one prompt, one `trees: Trees` whether it reads
    episodes that branched ("required") or needs independent ones ("refused"). `in_parts = True` says that its values
    and its state do not depend on whether a batch comes whole or in parts (groups whole). A constructor may ask for
    `tracker` (the run's `ValueTracker`; the run then initializes it and freezes its values), `inner` (a stage),
    `logprobs` and `entropies` (of the learner: trajectories -> an array over each one's action tokens), `sampler` (what
    draws the run's tasks).
    """

    def __call__(self, batch: Batch) -> Advantages:
        """One array a trajectory, in the order of `batch`. Raises UserError on a batch that it cannot judge."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, in plain JSON types; {} where it keeps nothing."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` that went through JSON."""


def per_token(values: Sequence[float], batch: Batch) -> list[np.ndarray]:
    """One value a trajectory, as an array over its action tokens."""
    return [np.full(t.n_action_tokens, value, np.float64) for t, value in zip(batch, values, strict=True)]


def standardize(advantages: Numbers, weights: Any = None) -> Numbers:
    """Mean 0 and deviation 1 under `weights` (action-token counts; None: every entry counts 1).

    advantages: n floats, a list or a 1-d tensor; the same kind comes back. All equal: zeros.
    """
    a = _floats(advantages)
    centred, deviation = centre(a, [1.0] * len(a) if weights is None else _floats(weights))
    return _like(advantages, [x / deviation if deviation else 0.0 for x in centred])


def centre(advantages: Sequence[float], weights: Sequence[float]) -> tuple[list[float], float]:
    """(A − μ, σ) under `weights`; σ is exactly 0 where all are equal, or where nothing has a weight."""
    total = math.fsum(weights)
    if total == 0:
        return [0.0] * len(advantages), 0.0
    mean = math.fsum(w * a for w, a in zip(weights, advantages, strict=True)) / total
    centred = [a - mean for a in advantages]
    deviation = math.sqrt(math.fsum(w * a * a for w, a in zip(weights, centred, strict=True)) / total)
    equal = deviation <= 1e-9 * max(1.0, *map(abs, advantages))  # rounding of equal numbers is not a signal
    return centred, 0.0 if equal else deviation


def shape_early_calls(
    advantages: Numbers,
    first_call: Any,
    length: Any,
    correct: Any,
    delta: float,
    k: float,
) -> Numbers:
    """ASPO over one comparison set of n trajectories.

    first_call: token position of the first call in the response, None (or NaN) where there is no call.
    length: response length in tokens. correct: booleans. delta < 0 favours early calls; 0 < k < 1.
    Lists or 1-d tensors of n entries; the kind of `advantages` comes back. Raises UserError when k is not in (0, 1).
    """
    if not 0 < k < 1:
        raise UserError(f"ASPO needs 0 < k < 1 so that no advantage changes sign; got k={k}")
    a, position, tokens, right = map(_list, (advantages, first_call, length, correct))
    called = [p is not None and not math.isnan(p) for p in position]
    signal = [p if r and c else None for p, r, c in zip(position, right, called, strict=True)]
    for i, term in call_terms(signal, tokens, delta).items():
        a[i] += float(clipped(np.asarray(a[i]), term, k))
    return _like(advantages, a)


def call_terms(signal: Sequence[float | None], length: Sequence[float], delta: float) -> dict[int, float]:
    """δ·(s − mean s)/mean L of the eligible trajectories of one comparison set, by place; {} below two of them.

    signal: s, None where a trajectory is not eligible. length: L in tokens.
    """
    known = {i: s for i, s in enumerate(signal) if s is not None}
    if len(known) < 2:
        return {}
    mean_signal = math.fsum(known.values()) / len(known)
    mean_length = math.fsum(length[i] for i in known) / len(known)
    if mean_length <= 0:
        return {}
    return {i: delta * (s - mean_signal) / mean_length for i, s in known.items()}


def clipped(advantage: np.ndarray, term: float, k: float) -> np.ndarray:
    """`term` within ±k·advantage, elementwise; 0 where the advantage is not positive, for there the bounds cross."""
    return np.where(advantage > 0, np.clip(term, -k * np.abs(advantage), k * np.abs(advantage)), 0.0)


def _list(numbers: Any) -> list[Any]:
    return numbers.tolist() if hasattr(numbers, "tolist") else list(numbers)


def _floats(numbers: Any) -> list[float]:
    return [float(x) for x in _list(numbers)]


def _like(kind: Numbers, values: list[float]) -> Numbers:
    made: Any = kind
    return cast("Numbers", made.new_tensor(values) if hasattr(made, "new_tensor") else values)
