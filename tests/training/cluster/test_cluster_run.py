"""Whole runs on the simulated cluster: the laptop's log in spite of deaths, and a driver that is killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solostream.agent.trajectory_file import read_lines
from solostream.training import config as configuration
from solostream.training.run.summary import Summary
from solostream.training.run.trainer import Trainer

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests/training/run/tiny.toml"
pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(280),
    pytest.mark.filterwarnings("ignore:none of the first"),  # a tiny policy has no answer
]


class Killer:
    """Ends processes of the run between two steps; Ray, who is not told to stop, starts them again."""

    def __init__(self, victims: dict[int, str], actors: Callable[[], list[Any]]) -> None:
        self.victims, self.actors = victims, actors

    def on_step(self, step: int, metrics: Any, batch: Any) -> None:
        import ray

        for actor in self.actors():
            if actor.who == self.victims.get(step):
                ray.kill(actor.handle, no_restart=False)


def run(folder: Path, victims: dict[int, str] | None = None, **cluster: int) -> Summary:
    settings = {f"cluster.{key}": value for key, value in cluster.items()}
    config = configuration.validate(configuration.assign(configuration.read(TINY), settings))
    trainer = Trainer(config, folder, callbacks=[Killer(victims or {}, lambda: trainer.placement._actors)])
    summary = trainer.run()
    assert summary is not None
    return summary


def test_two_replicas_and_two_players_of_which_some_die_write_the_log_of_one_process(
    ray_cluster: Any, tmp_path: Path
) -> None:
    code = (
        "import sys; from solostream.training.run.train import train; "
        f"train({str(TINY)!r}, {{'run.root': {str(tmp_path)!r}}}, name='here'); assert 'ray' not in sys.modules"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    victims = {2: "the player 0", 4: "the replica 1"}
    there = run(tmp_path / "there", victims, replicas=2, players=2)
    assert alone.wait() == 0  # and without Ray, which the defaults do not need
    logs = [(tmp_path / name / "trajectories.jsonl").read_bytes() for name in ("here", "there")]
    assert logs[0] == logs[1]
    assert there.steps == 6


def test_a_driver_that_is_killed_goes_on_and_no_episode_is_lost_or_counted_twice(
    ray_cluster: Any, tmp_path: Path
) -> None:
    settings = {"run.root": tmp_path, "rollout.mode": "async", "cluster.players": 1, "run.checkpoint_every": 1}
    command = [sys.executable, "-m", "solostream", "train", str(TINY), "--name", "run"]
    command += ["--cluster", ray_cluster.address, *(f"--set={key}={value}" for key, value in settings.items())]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "run/trajectories.jsonl"
    first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert first.stdout is not None
    said = []
    for line in first.stdout:  # until the second update, whose checkpoint is just being written, or is whole
        said.append(line)
        if line.startswith("learning 2/6"):
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    assert first.returncode == -signal.SIGKILL, "".join(said)
    before = [line.trajectory.dispatch.event for line in read_lines(log) if line.trajectory]
    done = subprocess.run(
        [*command, "--resume", "auto"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = list(read_lines(log))
    events = [line.trajectory.dispatch.event for line in lines if line.trajectory]
    updates = [event for line in lines if line.update for event in line.update]
    assert set(before) <= set(events)
    assert len(events) == len(set(events))
    newest = {line.record["update"]: list(line.update) for line in lines if line.update and line.record}
    used = [event for batch in newest.values() for event in batch]  # an update after the checkpoint is done again
    assert sorted(newest) == [1, 2, 3, 4, 5, 6]
    assert len(used) == len(set(used)) == 36
    assert set(updates) <= set(events)
