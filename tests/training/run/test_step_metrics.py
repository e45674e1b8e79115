"""Step metrics, scores and what a person reads, on numbers worked out by hand."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from solostream import registry
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.envs.types import ToolCall
from solostream.sandbox.types import Execution
from solostream.training.run import metrics
from solostream.training.run.metric_logger import MetricLogger, read
from solostream.training.run.progress import ProgressDisplay, note_of
from solostream.training.run.summary import Scores, Summary, scores, table


def spoken(reward: float, versions: list[int], value: float | None = None, code_at: int | None = None) -> Trajectory:
    """Two prompt tokens, one turn; `code_at`: the token of the turn at which an executed, passing call begins."""
    ledger = TokenRecord()
    ledger.add_observation("user", [1, 2], "q")
    calls = [ToolCall("python", {"code": "a\nb"}, (0, 1))] if code_at is not None else []
    ledger.add_action(
        [5] * len(versions),
        [-1.0] * len(versions),
        versions,
        "t",
        calls,
        [Execution()] * len(calls),
        [code_at] if code_at is not None else [],
    )
    return ledger.close("t", reward, "answered", dispatch=Dispatch(0, value, versions[0]), source="s")


def test_a_batch_by_hand() -> None:
    batch = [spoken(1.0, [3, 4, 4], code_at=2), spoken(0.0, [5])]
    found = metrics.of_batch(batch, version=5)
    assert found["reward/mean"] == 0.5
    assert found["accuracy/s"] == 0.5
    assert (found["staleness/mean"], found["staleness/max"], found["staleness/mixed_versions"]) == (1.0, 2, 0.5)
    assert (found["length/action_tokens"], found["length/response_max"]) == (4, 3)
    assert (found["code/ratio"], found["code/first_call_token"], found["code/rounds"]) == (0.5, 2.0, 0.5)
    assert (found["code/pass_ratio"], found["code/lines"]) == (1.0, 2.0)


def test_entropies_by_hand() -> None:
    """Turns of mean .75, 1 and 2 nats; behind the tool's output 18 tokens, of which the first 16 count."""
    ledger = TokenRecord()
    ledger.add_observation("user", [1, 2], "q")
    ledger.add_action([5, 5], [-0.5, -1.0], [0, 0], "call")
    ledger.add_observation("tool", [9], "o")
    ledger.add_action([6] * 18, [-0.5] * 8 + [-1.0] * 8 + [-3.0] * 2, [0] * 18, "answer")
    told = ledger.close("t", 1.0, "answered")
    other = TokenRecord()
    other.add_observation("user", [1], "q")
    other.add_action([5], [-2.0], [0], "t")
    other.add_action([], [], [], "nothing")
    found = metrics.of_batch([told, other.close("u", 0.0, "answered")], version=0)
    assert found["entropy/turn"] == pytest.approx((0.75 + 1.0 + 2.0) / 3)
    assert found["entropy/after_tool"] == pytest.approx(0.75)
    assert metrics.of_batch([spoken(1.0, [0])], version=0)["entropy/after_tool"] is None


def test_calibration_by_hand() -> None:
    batch = [spoken(1.0, [0], 0.75), spoken(0.0, [0], 0.75), spoken(0.0, [0], 0.25)]
    found = metrics.calibration(batch)
    assert found["tracker/value"] == pytest.approx(1.75 / 3)
    assert found["tracker/brier"] == pytest.approx((0.0625 + 0.5625 + 0.0625) / 3)
    assert found["tracker/calibration_error"] == pytest.approx(0.25)  # both cells are off by a quarter
    assert metrics.calibration([spoken(1.0, [0])]) == {}


def test_scores_by_hand() -> None:
    sampled = [spoken(1.0, [0, 0, 0, 0], code_at=1), spoken(0.0, [0, 0, 0, 0], code_at=3), spoken(0.0, [0])]
    found = scores(sampled, [spoken(1.0, [0])])
    third = pytest.approx(1 / 3)  # all of one problem: there is nothing that its interval could vary over
    assert found == Scores(third, 1.0, pytest.approx(2 / 3), 2.0, 1.0, pytest.approx(2 / 3), third, third)


def test_the_interval_of_held_out_accuracy_is_over_problems() -> None:
    """Two samples a problem that agree are no more evidence than one."""
    once = [replace(spoken(float(i < 5), [0]), task_id=f"p{i}") for i in range(16)]
    one, two = scores(once, []), scores([t for t in once for _ in range(2)], [])
    assert (one.accuracy_low, one.accuracy_high) == (two.accuracy_low, two.accuracy_high)
    half = 1.96 * (5 / 16 * 11 / 16 / 16) ** 0.5
    assert one.accuracy_low == pytest.approx(5 / 16 - half, abs=0.04)
    assert one.accuracy_high == pytest.approx(5 / 16 + half, abs=0.04)


def test_the_table_shows_before_and_after_and_gaps() -> None:
    before, after = Scores(0.25, None, 0.5, 15.25, None, 0.5), Scores(0.9, 0.975, 1.0, 0.0, 0.99, 1.0)
    text = table(Summary("n", 3, "hf", 40, before, after, 0.02, 1e-5, 123.4, {"build": 3.4, "learning": 120.0}, {}))
    rows = {line.split("  ")[0]: line.split()[-3:] for line in text.splitlines()}
    assert rows["accuracy, sampled"] == ["25.0%", "→", "90.0%"]
    assert rows["accuracy, greedy"] == ["–", "→", "97.5%"]
    assert rows["first call (token)"] == ["15.2", "→", "0.0"]
    assert "without the tool" in text
    assert "2.0%" in text


def test_metrics_survive_a_torn_line_and_forget_what_will_run_again(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log("rl", step, {"reward/mean": step / 10, "bad": float("nan"), "none": None})
    logger.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"phase": "rl", "st')
    assert [row["step"] for row in read(path)] == [1, 2, 3]
    assert read(path)[0]["bad"] is None
    again = MetricLogger(tmp_path)
    again.keep(lambda row: row["step"] <= 2)
    again.log("rl", 3, {"reward/mean": 0.9})
    again.close()
    assert [(row["step"], row["reward/mean"]) for row in map(json.loads, path.read_text().splitlines())] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.9),
    ]


def test_a_resumed_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    """Steps of one phase that run again do not take those of another phase with them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = MetricLogger(tmp_path)
    for phase, last in (("cold_start", 6), ("rl", 4)):
        for step in range(1, last + 1):
            logger.log(phase, step, {"reward/mean": step / 8})
    logger.close()
    again = MetricLogger(tmp_path)
    again.keep(lambda row: row["phase"] == "cold_start" or row["step"] <= 2)
    for step in (3, 4, 5):
        again.log("rl", step, {"reward/mean": step / 4})
    again.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert shown == {
        "cold_start/reward/mean": [(step, step / 8) for step in range(1, 7)],
        "rl/reward/mean": [(1, 0.125), (2, 0.25), (3, 0.75), (4, 1.0), (5, 1.25)],
    }
    assert again.rows[0].keys() == {"phase", "step", "time", "reward/mean"}


def test_without_a_terminal_a_phase_is_a_few_plain_lines() -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=200)).stage("learning", 80) as stage:
        for step in range(80):
            stage.advance({"reward/mean": step / 80})
    lines = out.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[-1].startswith("learning 80/80  reward 0.988")
    assert "\x1b" not in out.getvalue()


def test_a_supervised_step_shows_loss_and_speed() -> None:
    assert note_of({"loss": 0.5, "tokens_per_s": 12345.6, "lr": 0.1}) == "loss 0.500  tokens/s 12,346"


def test_wandb_offline_holds_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    given = {"name": tmp_path.name, "config": {"run": {"steps": 2}}}
    logger = MetricLogger(tmp_path, trackers=[registry.make("tracker", "wandb", {"project": "tests"}, **given)])
    for step in (1, 2):
        logger.log("rl", step, {"reward/mean": step / 8, "none": None})
    logger.close()
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30
    while b"0.25" not in log.read_bytes() and time.monotonic() < deadline:  # a process of W&B's own writes it
        time.sleep(0.1)
    assert b"rl/reward/mean" in log.read_bytes()
    assert b"0.25" in log.read_bytes()
