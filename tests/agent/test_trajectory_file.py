"""Damaged files: what is whole is read, what is not is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import evaluation_records, write_evaluation

from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.agent.trajectory_file import TrajectoryLog, find_file, read_line, read_lines
from solostream.envs.types import ToolCall
from solostream.errors import UserError
from solostream.evaluation.samples import read_samples
from solostream.sandbox.types import Execution


def rewrite(path: Path, change) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(change(i, line) for i, line in enumerate(lines)), encoding="utf-8")


def test_a_half_written_last_line_waits_for_its_end(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, 3, 2) / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    first = list(read_lines(path))
    assert len(first) == 5
    path.write_bytes(whole)
    last = first[-1]
    rest = list(read_lines(path, last.offset + last.length, last.number + 1))
    assert [line.number for line in rest] == [5]
    assert rest[0].trajectory is not None


def test_damage_is_named_by_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, 3, 2) / "samples.jsonl"

    def damage(i: int, line: str) -> str:
        if i == 1:
            return line[: len(line) // 2] + "\n"
        if i == 2:
            record = json.loads(line)
            del record["reward"]
            return json.dumps(record) + "\n"
        if i == 3:
            return json.dumps({**json.loads(line), "token_ids": [1]}) + "\n"
        return "[1]\n" if i == 4 else line + "\n"

    rewrite(path, damage)
    samples, complaints = read_samples(tmp_path)
    assert len(samples) == 2
    assert [c.split(": ")[0] for c in complaints] == [f"samples.jsonl:{n}" for n in (2, 3, 4, 5)]
    assert "'reward' is missing" in complaints[1]
    assert "different lengths" in complaints[2]


async def test_an_update_is_written_as_it_weighed_the_tokens(tmp_path: Path) -> None:
    """The same for all tokens: one number. Else the mean of each turn of the policy, null for one without tokens."""
    record = TokenRecord()
    record.add_observation("user", [1, 2], "ask")
    record.add_action([3, 4, 5], [-1.0] * 3, [0] * 3, "a")
    record.add_observation("tool", [6], "seen")
    record.add_action([7], [math.nan], [0], "its sampler told no probability")
    record.add_observation("tool", [8], "seen")
    record.add_action([9, 9], [-1.0] * 2, [0] * 2, "b")
    batch = [record.close("t", 1.0, "answered", dispatch=Dispatch(event)) for event in (4, 7)]
    log = TrajectoryLog(tmp_path / "trajectories.jsonl")
    await log.append(*batch)
    await log.update(3, batch, [np.full(5, -0.75), np.array([0.5, 1.0, 0.75, -1.0, -2.0])])
    log.close()
    *trajectories, last = read_lines(log.path)
    assert [line.trajectory for line in trajectories] == batch
    assert last.update == {4: -0.75, 7: [0.75, None, -1.5]}
    assert last.trajectory is last.damage is None


def test_offsets_are_bytes_not_characters(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, 4, 4) / "samples.jsonl"
    assert path.stat().st_size != len(path.read_text())
    records = list(evaluation_records(4, 4, 0.7))
    for line in read_lines(path):
        assert read_line(path, line.offset, line.length) == records[line.number]


def test_empty_and_absent_runs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        find_file(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"neither trajectories\.jsonl"):
        find_file(tmp_path)
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(UserError, match="it has no whole line"):
        read_samples(tmp_path)


def test_log_probabilities_read_back_to_the_last_bit() -> None:
    """A run that resumes trains on what the log holds: on the same float32 as the run that did not stop."""
    sampled = -(np.random.default_rng(7).exponential(1.0, 999) ** 5)
    record = TokenRecord()
    record.add_observation("user", [1], "hi")
    record.add_action(list(range(999)), sampled.tolist(), [3] * 999, "x")
    whole = record.close("task", 1.0, "answered")
    back = Trajectory.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert np.array_equal(back.logprobs[1:], sampled.astype(np.float32))
    assert np.isnan(back.logprobs[0])


def said(text: str, number: float, reward: float) -> Trajectory:
    record = TokenRecord()
    record.add_observation("user", [1, 2], "größer als 数?")
    call = ToolCall("python", {"code": text, "n": number}, (0, 1))
    record.add_action([3, 150_000], [-1e-9, -17.25], [0, 4], text, [call], [Execution(stdout=text)], [0], reward=reward)
    return record.close("task", reward, "answered", seed=2**62)


@pytest.mark.parametrize(
    ("text", "number", "reward"),
    [
        ("plain, naïve, 数", 5, 1.0),
        ("", 10**30, 0.25),  # more than 64 bits
        ("half a pair: \ud83d", 1.5e300, 1.0),
        (
            "no number",
            -(2**63) - 1,
            float("inf"),
        ),  # of an environment that is wrong: such batches are written down, too
    ],
)
def test_a_line_says_what_the_record_says(text: str, number: float, reward: float) -> None:
    whole = said(text, number, reward)
    line = whole.to_json()
    assert "\n" not in line
    assert json.loads(line.encode()) == json.loads(json.dumps(whole.to_dict()))
    assert Trajectory.from_dict(json.loads(line)) == whole


def test_a_reward_that_is_no_number_is_still_one_in_the_file() -> None:
    assert math.isnan(Trajectory.from_dict(json.loads(said("x", 1, float("nan")).to_json())).reward)
