"""A trajectory as a decision process: each turn of the policy is an action, taken in a state, paid by the environment.

Two turns are the same action when they make the same calls (without a call: say the same), whatever was thought before.
State `history`: all calls and outputs so far, which is what a stateful interpreter knows. State `observation`: the last
message that the policy read, as GiGPO's authors take it for environments whose observation says everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

import numpy as np

from solostream.agent.trajectory import Trajectory, Turn

State = Literal["history", "observation"]


def spans(trajectory: Trajectory) -> list[slice]:
    """Of each turn of the policy its action tokens, as a part of an array over all of them; empty where not told."""
    edges = np.concatenate(([0], np.cumsum(trajectory.action_mask)))
    return [slice(int(edges[t.start]), int(edges[t.end])) for t in _own(trajectory)]


def turn_rewards(trajectory: Trajectory) -> np.ndarray:
    """float64 [turns of the policy]: what the environment paid; where no turn was paid the last has the outcome."""
    paid = np.array([t.reward for t in _own(trajectory)], np.float64)
    if len(paid) and not paid.any():
        paid[-1] = trajectory.reward
    return paid


def returns(trajectory: Trajectory, gamma: float) -> np.ndarray:
    """R_t = Σ_{s ≥ t} γ^(s − t)·r_s, float64 [turns of the policy]."""
    found = turn_rewards(trajectory)
    for t in range(len(found) - 2, -1, -1):
        found[t] += gamma * found[t + 1]
    return found


def actions(trajectory: Trajectory) -> list[str]:
    """What each turn did, one key a turn of the policy."""
    return [_action(t) for t in _own(trajectory)]


def states(trajectory: Trajectory, state: State = "history") -> list[str]:
    """In what each turn was taken, one key a turn of the policy; only to be compared within one task."""
    found, before = [], blake2b(digest_size=16)
    last = ""
    for turn in trajectory.turns:
        if turn.role == "assistant":
            found.append(before.hexdigest() if state == "history" else last)
            _add(before, "did", _action(turn))
        elif turn.role != "context":  # which repeats what was there: the interpreter knows no more and no less
            last = turn.text
            _add(before, "read", turn.text)
    return found


def _own(trajectory: Trajectory) -> list[Turn]:
    return [turn for turn in trajectory.turns if turn.role == "assistant"]


def _action(turn: Turn) -> str:
    calls = [[call.name, dict(call.arguments)] for call in turn.calls if call.status == "ok"]
    return json.dumps(calls, sort_keys=True, default=str) if calls else turn.text.strip()


def _add(to: blake2b, *parts: str) -> None:
    for part in _framed(parts):
        to.update(part)


def _framed(parts: Iterable[str]) -> Iterable[bytes]:
    """With their lengths, so that no two sequences of texts run together alike."""
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        yield len(raw).to_bytes(8, "little")
        yield raw
