"""Trajectories with the numbers that a test of the algorithms needs, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.envs.types import ToolCall
from solostream.sandbox.types import CodeError, Execution
from solostream.training.advantages.base import Advantages

CALL = ToolCall("python", {"code": "1 + 1"}, (0, 1))


def trajectory(
    task_id: str = "task",
    reward: float = 1.0,
    *,
    prompt: Sequence[int] = (1, 2, 3),
    response: Sequence[int] = (4, 5, 6, 7),
    logprobs: Sequence[float] | None = None,
    version: int = 0,
    event: int = 0,
    value: float | None = 0.5,
    group: int | None = None,
    call_at: int | None = None,
    calls: int | None = None,
    passed: bool = True,
    **fields: Any,
) -> Trajectory:
    """One prompt and one sampled turn; `call_at`: where in the response its first call begins, None for no call."""
    ledger = TokenRecord()
    ledger.add_observation("user", list(prompt), "question")
    n = 0 if call_at is None else 1 if calls is None else calls
    execution = Execution() if passed else Execution(status="error", error=CodeError("ValueError", "no", "no"))
    ledger.add_action(
        list(response),
        [-1.0] * len(response) if logprobs is None else list(logprobs),
        [version] * len(response),
        "answer",
        [CALL] * n,
        [execution] * n,
        [call_at or 0] * n,
        void=fields.pop("void", False),
    )
    ending = fields.pop("ending", "answered")
    return ledger.close(task_id, reward, ending, dispatch=Dispatch(event, value, version, group), **fields)


def constant(*values: float, batch: Sequence[Trajectory]) -> Advantages:
    """One value a trajectory, the same for all of its tokens."""
    return Advantages([np.full(t.n_action_tokens, value) for t, value in zip(batch, values, strict=True)])


def one_each(advantages: Advantages) -> list[float]:
    """The value of each trajectory; fails where its tokens do not share one."""
    assert all(len(set(values.tolist())) == 1 for values in advantages.values)
    return [float(values[0]) for values in advantages.values]
