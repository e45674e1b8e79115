"""Our episodes as verl's agent loop, our advantages as its estimator: verl's own classes, in a process of their own.

`verl_session` makes what is looked at here; verl lies in a folder of its own (`scripts/install-verl.sh`).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_ledgers

from solostream.agent.trajectory_file import read_lines
from solostream.errors import UserError
from solostream.integrations.verl_book import KEPT, Book
from solostream.training.advantages import ASPO, SPO, ValueTracker
from solostream.training.batch import Batch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """(what the session printed, the book's folder)"""
    folder, book = tmp_path_factory.mktemp("verl"), tmp_path_factory.mktemp("book")
    installed = subprocess.run(
        [ROOT / "scripts/install-verl.sh", sys.executable, folder], capture_output=True, text=True
    )
    if installed.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"verl does not install: {installed.stderr[-300:]}")
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}
    paths = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("verl_session.py"), book],
        env={**os.environ, **quiet, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), book


def test_its_trainer_computes_our_advantages(session: tuple[dict[str, Any], Path]) -> None:
    found, book = session
    lines = list(read_lines(book / "trajectories.jsonl"))
    played = {line.trajectory.dispatch.event: line.trajectory for line in lines if line.trajectory}
    assert len(played) == 10
    ours = ASPO(SPO(ValueTracker(0.9, 0.9)))
    for number, batch in enumerate(found["batches"]):
        trajectories = [played[event] for event in range(5 * number, 5 * number + 5)]
        expected = ours(Batch(trajectories[::-1])).values[::-1]  # the session hands the rows over backwards
        assert len({round(float(values[0]), 6) for values in expected}) >= 3
        for row, values, told, trajectory in zip(
            batch["rows"], expected, batch["advantages"], trajectories, strict=True
        ):
            mask = np.array(row["response_mask"], bool)
            got = np.array(told[: len(mask)])
            assert np.allclose(got[mask], values, atol=1e-6)
            assert not got[~mask].any()
            assert not any(told[len(mask) :])
            assert row["prompts"] + row["responses"] == trajectory.token_ids.tolist()
            assert mask.tolist() == trajectory.action_mask[len(row["prompts"]) :].tolist()
            assert np.allclose(np.array(row["rollout_log_probs"])[mask], trajectory.logprobs[trajectory.action_mask])
            assert row["rm_scores"][-1] == trajectory.reward
            assert sum(row["rm_scores"]) == trajectory.reward
    assert [played[event].reward for event in range(5)] == [1.0, 0.0, 1.0, 1.0, 0.0]
    # the first batch moved the tracker: what the second one began with is no longer the prior
    assert all(played[event].dispatch.value == 0.5 for event in range(5))
    assert [played[event].dispatch.value != 0.5 for event in range(5, 10)] == [True] * 5
    advantages = json.loads((book / "advantages.json").read_text())
    assert advantages["batches"] == 2
    assert [line.update.keys() for line in lines if line.update] == [set(range(5)), set(range(5, 10))]


def test_its_agent_loop_plays_our_episodes(session: tuple[dict[str, Any], Path]) -> None:
    found, book = session
    first = next(line.trajectory for line in read_lines(book / "trajectories.jsonl") if line.trajectory)
    assert first.first_call_token is not None
    assert next(turn.text for turn in first.turns if turn.role == "tool").strip() == "42"
    assert [row["extra"]["min_global_steps"] for row in found["batches"][1]["rows"]] == [1] * 5
    rows = found["batches"][0]["rows"]
    assert [0 in row["response_mask"] for row in rows] == [True, False, True, False, True]  # of calls
    turns = [asked for asked in found["asked"] if asked["request"] == "0-0"]
    assert len(turns) == 2
    assert turns[0]["max_tokens"] == 220
    assert turns[1]["max_tokens"] == 220 - (turns[1]["prompt"] - turns[0]["prompt"])  # verl's response_length holds
    assert {asked["temperature"] for asked in found["asked"]} == {0.7}


def test_what_is_missing_is_told(session: tuple[dict[str, Any], Path]) -> None:
    found, _ = session
    assert "5 of 5 rows were not played by solostream's agent loop" in found["unknown"]
    assert "calculate_log_probs=True" in found["silent"]


def test_a_book_goes_on_where_it_was(tmp_path: Path) -> None:
    def batch(book: Book, first: int) -> list[np.ndarray]:
        async def one() -> list[np.ndarray]:
            rewards = [1.0, 0.0, 0.0]
            for i, reward in enumerate(rewards):
                dispatch = await book.dispatch(f"t{i}")
                await book.finish(
                    f"u{first + i}",
                    tiny_ledgers.trajectory(f"t{i}", reward, event=dispatch.event, value=dispatch.value, call_at=i),
                )
            return await book.advantages([f"u{first + i}" for i in range(3)], rewards)

        return asyncio.run(one())

    whole, cut = Book(str(tmp_path / "whole")), Book(str(tmp_path / "cut"))
    batch(whole, 0), batch(cut, 0)
    again = Book(str(tmp_path / "cut"))
    assert again.tracker.value("t0") == whole.tracker.value("t0") != 0.5
    assert np.array_equal(np.concatenate(batch(again, 3)), np.concatenate(batch(whole, 3)))


def test_what_verl_never_asks_for_is_forgotten_and_a_second_stream_refused(tmp_path: Path) -> None:
    async def run() -> None:
        book = Book(str(tmp_path), stages=())
        await book.finish("validation", tiny_ledgers.trajectory("t"))
        for i in range(KEPT):
            await book.finish(f"u{i}", tiny_ledgers.trajectory("t", event=i))
            await book.advantages([f"u{i}"], [1.0])
        with pytest.raises(UserError, match="were not played"):
            await book.advantages(["validation"], [1.0])
        await book.finish("twice", tiny_ledgers.trajectory("t"))
        with pytest.raises(UserError, match=r"rollout\.n=1"):
            await book.finish("twice", tiny_ledgers.trajectory("t"))
        with pytest.raises(UserError, match="outside"):
            await book.advantages(["twice"], [-0.2])  # verl's KL penalty in the reward

    asyncio.run(run())
    with pytest.raises(UserError, match="compares within groups"):
        Book(str(tmp_path), "grpo", stages=())
