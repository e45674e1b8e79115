"""Doors: a stranger's package adds one of every kind, 0 files of ours touched, and a run really uses them all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from solostream import registry
from solostream.training.contracts import CHECKS, check

EXAMPLE = Path(__file__).parents[2] / "examples" / "solostream-everything"
PACKAGE = "solostream_everything"
ADDED = [
    ("tool", "playing:Double"),
    ("environment", "playing:Echo"),
    ("environment", "playing:penalised"),
    ("reward", "playing:brief"),
    ("answer", "playing:last_word"),
    ("syntax", "playing:Run"),
    ("layout", "playing:Pairs"),
    ("data", "playing:Sums"),
    ("rollout", "playing:twice"),
    ("engine", "learning:counting"),
    ("advantage", "learning:Sign"),
    ("advantage", "learning:Faded"),
    ("loss", "learning:Scaled"),
    ("sampler", "learning:Backwards"),
    ("metric", "watching:turns"),
    ("tracker", "watching:Lines"),
    ("callback", "watching:Enough"),
]


def solostream(*arguments: str, cwd: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    """The console script's way in: it has no current folder on its path."""
    code = "import sys; sys.path = [p for p in sys.path if p]; from solostream.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    done = solostream("train", "everything.toml", "--name", "all", "--set", f"run.root={root}")
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "all"


def test_one_of_every_kind() -> None:
    assert {kind for kind, _ in ADDED} == set(CHECKS)
    assert set(registry.BUILT_IN) == {*CHECKS, "sandbox"}


@pytest.mark.parametrize(("kind", "spec"), [pair for pair in ADDED if pair[0] != "engine"])
def test_each_keeps_its_contract(kind: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    promises = check(kind, f"{PACKAGE}.{spec}")
    assert promises
    assert [promise for promise, kept in promises if not kept] == []


def test_the_run_used_them_all(run: Path) -> None:
    assert json.loads((run / "enough.json").read_text()) == {"steps": 2}  # the callback, which ended it after 2 of 5
    assert json.loads((run / "summary.json").read_text())["engine"] == f"{PACKAGE}.learning:counting"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["phase"] == "rl"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all({"own/many_turns", "scaled/tokens"} <= row.keys() for row in steps)  # the metric, the loss
    lines = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    assert [line["rl/step"] for line in lines if "rl/step" in line] == [1, 2]  # the tracker
    text = (run / "trajectories.jsonl").read_text()
    assert re.search(r"What is \d+ plus \d+\?", text)  # the layout
    assert "one word" in text  # the answer style's sentence
    assert "<run>" in text  # the syntax's
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["algorithm"][f"{PACKAGE}.learning:Faded"] == {"rate": 0.9}
    (saved,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    tested = json.loads((saved / "solostream.json").read_text())["env_options"]["tasks"]
    assert (tested["load"], tested["options"]) == (f"{PACKAGE}.playing:Sums:and", {"most": 30})  # the data
    assert config["tracker"][f"{PACKAGE}.watching:Lines"] == {"file": "lines.jsonl"}  # a default, written out


def test_its_model_is_evaluated_with_the_engine_and_a_metric(run: Path, tmp_path: Path) -> None:
    (checkpoint,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    engine = f"{PACKAGE}.learning:counting:{checkpoint}"
    done = solostream("check", "engine", engine)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "eval"
    options = ["--limit", "2", "--max-tokens", "100", "--out", str(out), "--env-options", '{"reward": "correct"}']
    done = solostream(
        "eval",
        engine,
        "--data",
        "pairs.jsonl",
        "--layout",
        f"{PACKAGE}.playing:Pairs",
        *options,
        "--metric",
        f"{PACKAGE}.watching:turns",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["own"].keys() == {"own/many_turns"}
    assert summary["metrics"]["samples"] == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["check", "loss", f"{PACKAGE}.learning:Scald"], "did you mean 'Scaled'"),
        (["check", "loss", f"{PACKAGE}.learnin:Scaled"], f"no module '{PACKAGE}.learnin'"),
        (["check", "los", "gspo"], "unknown kind 'los'; did you mean 'loss'"),
        (["check", "loss", f"{PACKAGE}.learning:Scaled", "--options", '{"scal": 2}'], "did you mean 'scale'"),
        (["eval", f"scripted:{PACKAGE}.playing:nothing"], "has no 'nothing'"),
        (["sandbox", "check", f"{PACKAGE}.playing:quite"], "did you mean 'quiet'"),
    ],
)
def test_mistakes_are_one_line_from_the_folder_of_the_module(command: list[str], words: str) -> None:
    done = solostream(*command)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_specs_work_from_the_folder_that_holds_the_module() -> None:
    done = solostream("sandbox", "check", f"{PACKAGE}.playing:quiet", "--only", "protocol")
    assert "pass" in done.stdout, done.stderr
    assert solostream("check", "tool", f"{PACKAGE}.playing:Double").returncode == 0


BROKEN = '''
import random
class Mixed:
    """A loss whose sequences see one another."""
    def __call__(self, tokens):
        return -(tokens.log_ratio.exp() * tokens.advantage).mean().expand(len(tokens.advantage)), {}
def generous(episode): return 0.5 + len(episode.steps) * random.random() / 4
class Forgetful:
    def __init__(self, task_ids, seed=0): self.ids, self.random = task_ids, random.Random(seed)
    def next(self): return self.random.choice(self.ids)
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
class Numb:
    def __call__(self, batch):
        from solostream.training.advantages.base import Advantages
        import numpy as np
        return Advantages([np.zeros(1) for _ in batch])
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
'''


@pytest.mark.parametrize(
    ("kind", "name", "promise"),
    [
        ("loss", "Mixed", "it does not depend on the cut"),
        ("reward", "generous", "the same episode earns the same"),
        ("sampler", "Forgetful", "its state survives JSON"),
        ("advantage", "Numb", "one array a trajectory, over its action tokens"),
    ],
)
def test_a_broken_promise_is_found(
    kind: str, name: str, promise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_for_contracts.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (promise, False) in check(kind, f"broken_for_contracts:{name}")
