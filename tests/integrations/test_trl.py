"""TRL's own queue and health check on the other end of our worker. Its learner needs FlashAttention-3: not run here."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from trl.experimental.async_grpo.async_grpo_trainer import (
    RolloutQueueDataset,
    RolloutWorkerProtocol,
)

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.envs.types import ToolCall
from solostream.errors import UserError
from solostream.integrations.trl import RolloutWorker, sample
from solostream.sandbox.types import Execution
from solostream.training.advantages import ASPO, GRPO, SPO, ValueTracker
from solostream.training.batch import Batch
from solostream.training.rollouts.request import RolloutRequest

TASKS = [f"t{i}" for i in range(5)]


def episode(request: RolloutRequest) -> Trajectory:
    """Three tokens before the output and two after it; right one time in three; a call at its first or third token."""
    event = request.dispatch.event
    record = TokenRecord()
    record.add_observation("user", [1, 2], "a question")
    call = ToolCall("python", {"code": "1"}, (0, 1))
    version = [request.dispatch.version] * 3
    record.add_action([3, 4, 5], [-0.1, -0.2, -0.3], version, "so", [call], [Execution()], [2 * (event % 2)])
    record.add_observation("tool", [6], "1")
    record.add_action([7, 8], [-0.4, -0.5], version[:2], "it is 1")
    return record.close(
        request.task_id, float(event % 3 == 0), "answered", dispatch=request.dispatch, seed=request.seed
    )


async def play(request: RolloutRequest) -> Trajectory:
    await asyncio.sleep(0.001)
    return episode(request)


def drawn(worker: RolloutWorker, version: int, n: int, metrics: dict) -> list[dict]:
    """What TRL's trainer would train on at `version`."""
    dataset = RolloutQueueDataset(
        worker.rollout_buffer, lambda: version, worker.check_health, 60.0, metrics, max_staleness=2, poll_interval_s=0.2
    )
    stream = iter(dataset)
    return [next(stream) for _ in range(n)]


@pytest.fixture
def worker(tmp_path: Path):
    made = RolloutWorker(play, TASKS, tmp_path, batch=6, in_flight=9, queued=12)
    yield made
    made.stop()


def test_it_has_what_the_protocol_asks_for(worker: RolloutWorker) -> None:
    wanted = {name for name in vars(RolloutWorkerProtocol) if not name.startswith("_")}
    wanted |= set(RolloutWorkerProtocol.__annotations__)
    assert {"start", "stop", "update_model_version", "check_health", "rollout_buffer", "metrics_queue"} <= wanted
    assert [name for name in wanted if not hasattr(worker, name)] == []


def test_its_samples_are_our_trajectories_under_our_advantages(worker: RolloutWorker, tmp_path: Path) -> None:
    worker.start()
    rows = drawn(worker, 0, 18, defaultdict(list))
    worker.stop()
    logged = [line for line in read_lines(tmp_path / "trajectories.jsonl")]
    played = {line.trajectory.dispatch.event: line.trajectory for line in logged if line.trajectory}
    weighed = {event: value for line in logged for event, value in (line.update or {}).items()}
    same = ASPO(SPO(ValueTracker(0.9, 0.9)))  # the first batch again, by hand
    order = [row["group_id"] for row in rows]
    again = same(Batch([played[event] for event in order[:6]]))
    for row, values in zip(rows[:6], again.values, strict=True):
        assert row["advantage"] == pytest.approx(values[0], abs=1e-12)
    for row in rows:
        trajectory = played[row["group_id"]]
        assert row["advantage"] == pytest.approx(weighed[row["group_id"]], abs=1e-6)
        assert list(row["input_ids"]) == trajectory.token_ids.tolist()
        assert list(row["completion_mask"]) == [0, 0, 1, 1, 1, 0, 1, 1]
        assert np.allclose(row["old_log_probs"], [0, 0, -0.1, -0.2, -0.3, 0, -0.4, -0.5])
        assert row["metrics"]["reward"] == trajectory.reward
    assert len({row["advantage"] for row in rows}) > 2
    assert "solostream/advantage/variance" in worker.metrics_queue.get_nowait()


def test_a_new_version_is_what_later_episodes_carry_and_old_ones_are_dropped_by_trl(
    worker: RolloutWorker, tmp_path: Path
) -> None:
    worker.start()
    drawn(worker, 0, 1, defaultdict(list))
    worker.update_model_version(3)
    metrics: dict = defaultdict(list)
    PartialState()  # TRL's logger wants it
    rows = drawn(worker, 3, 8, metrics)
    logged = [line.trajectory for line in read_lines(tmp_path / "trajectories.jsonl") if line.trajectory]
    version = {t.dispatch.event: t.dispatch.version for t in logged}
    assert [version[row["group_id"]] for row in rows] == [3] * 8
    assert sum(metrics["sample/dropped_stale_total"]) > 0


def test_a_failure_and_a_silence_reach_the_trainer(tmp_path: Path) -> None:
    async def broken(request: RolloutRequest) -> Trajectory:
        raise ValueError("the environment is wrong")

    worker = RolloutWorker(broken, TASKS, tmp_path, batch=2, in_flight=2)
    worker.start()
    worker._thread.join(30)
    with pytest.raises(RuntimeError, match="the environment is wrong"):
        worker.check_health(60)

    async def stuck(request: RolloutRequest) -> Trajectory:
        await asyncio.Event().wait()
        raise AssertionError

    worker = RolloutWorker(stuck, TASKS, tmp_path / "stuck", batch=2, in_flight=2)
    worker.start()
    time.sleep(0.05)
    with pytest.raises(RuntimeError, match="no batch for"):
        worker.check_health(0.01)
    worker.stop()
    worker.stop()


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="within groups"):
        RolloutWorker(play, TASKS, tmp_path, advantage=GRPO())
    with pytest.raises(UserError, match="one advantage for all"):
        sample(episode(RolloutRequest("t", 0, Dispatch())), np.arange(5.0))
