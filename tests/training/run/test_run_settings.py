"""What a run saved is run_settings as in that run by `solostream eval` and `chat`, unless options say otherwise."""

from __future__ import annotations

import asyncio
import io
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from solostream.agent.run_settings import FILE
from solostream.agent.trajectory import Dispatch, Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.cli.main import main
from solostream.evaluation.options import EvalOptions
from solostream.training.config import load
from solostream.training.rollouts.env_pool import Episodes
from solostream.training.run import checkpoint, setup

TINY = Path(__file__).parent / "tiny.toml"
SETTINGS = (
    "cold_start.phases=[{steps=50, mix={early=0.2, bug=0.8}}]",
    "cold_start.batch=8",
    'cold_start.learner={optimizer="muon", lr=1e-2, muon_lr=0.05}',
    "env.turn_tokens=40",
    "env.episode_tokens=80",
    "env.output_tokens=12",
    "env.options.tracebacks=false",
    'env.options.system_prompt="Compute it."',
    "eval.temperature=0.8",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run whose settings are nobody's defaults; its policy calls Python, often wrongly."""
    root = tmp_path_factory.mktemp("runs")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = [word for setting in (*SETTINGS, f"run.root={root}") for word in ("--set", setting)]
    assert main(["sft", str(TINY), "--name", "own", *settings]) == 0
    torch.set_num_threads(before)
    return root / "own" / "checkpoints" / "step-000000"


def held_out(saved: Path, temperature: float, seeds: dict[str, int]) -> dict[str, Trajectory]:
    """The run's own way to play its held-out problems."""
    config = load(saved.parents[1] / "config.toml")

    async def play() -> dict[str, Trajectory]:
        parts = setup.build(config, *setup.problems(config), [], saved)
        engine = await setup.open_engine(config, parts, 4, partial(setup.module_beside, config, parts.model))
        episodes = Episodes(config, parts, parts.test)
        try:
            await engine.load_weights(parts.model.state_dict(), 0)
            sampling = episodes.sampling(temperature)
            return {
                task.id: await episodes.play(engine, task.id, sampling, Dispatch(), seeds.get(task.id, 0))
                for task in parts.test
            }
        finally:
            await episodes.close()
            await engine.close()

    return asyncio.run(play())


def evaluated(saved: Path, out: Path, *more: str) -> dict[str, Trajectory]:
    assert main(["eval", str(saved), "--out", str(out), *more]) == 0
    return {line.trajectory.task_id: line.trajectory for line in read_lines(out / "samples.jsonl") if line.trajectory}


@pytest.mark.parametrize(("more", "temperature"), [((), 0.8), (("--preset", "greedy"), 0.0)])
def test_without_options_eval_plays_as_the_run_does(
    saved: Path, tmp_path: Path, more: tuple[str, ...], temperature: float, capsys: pytest.CaptureFixture[str]
) -> None:
    got = evaluated(saved, tmp_path / "out", *more)
    assert capsys.readouterr().out.startswith("settings of the run own: solostream/Arithmetic-v0 {")
    own = held_out(saved, temperature, {task: t.seed for task, t in got.items()})
    assert {task: t.token_ids.tolist() for task, t in got.items()} == {
        task: t.token_ids.tolist() for task, t in own.items()
    }
    assert {task: t.ending for task, t in got.items()} == {task: t.ending for task, t in own.items()}
    shown = [turn.text for t in got.values() for turn in t.turns if turn.role == "tool"]
    assert any("SyntaxError" in text for text in shown)  # so that the settings of what it sees have mattered


def test_options_come_first(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").write_text('{"id": "p", "prompt": "What is 6 * 7?", "answer": "42"}\n')
    more = ["--turn-tokens", "3", "--env-options", '{"system_prompt": "Now differently."}', "--temperature", "0.5"]
    got = evaluated(saved, tmp_path / "out", "--data", str(tmp_path / "problems.jsonl"), *more)
    assert list(got) == ["p"]
    assert got["p"].n_action_tokens == 3
    assert "Now differently." in got["p"].turns[0].text
    identity = json.loads((tmp_path / "out" / "identity.json").read_text())
    options = json.loads(identity["env_options"])
    assert (identity["temperature"], identity["top_p"], identity["turn_tokens"]) == (0.5, 1.0, 3)
    assert (options["output_tokens"], options["tracebacks"], "tasks" in options) == (12, False, False)


def test_settling_twice_is_settling_once_and_another_sandbox_has_its_own_options(saved: Path) -> None:
    for fields in ({}, {"data": "math-500"}, {"env": "solostream/Math-v0"}, {"env_options": '{"sandbox": "docker"}'}):
        once = EvalOptions(str(saved), **fields).settled()
        assert once == once.settled()
    assert "sandbox_options" not in once.settings()
    assert EvalOptions(f"vllm:{saved}").settled().settings()["sandbox_options"] == {"preimport": ["math"]}
    assert EvalOptions(str(saved)).folder().name == "own-step-000000-Arithmetic-v0"


def test_chat_speaks_as_the_run_does(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message with a problem: the same turns and outputs as in the run's episode, up to where that one ends."""
    own = held_out(saved, 0.0, {})
    config = load(saved.parents[1] / "config.toml")
    called = [task for task in setup.problems(config)[1] if own[task.id].n_calls]
    assert called
    for task in called:
        monkeypatch.setattr("sys.stdin", io.StringIO(task.prompt + "\n"))
        assert main(["chat", str(saved), "--temperature", "0"]) == 0
        said = capsys.readouterr().out
        episode = own[task.id].turns[1:]
        shown = [turn.text if turn.role == "assistant" else f"│ {turn.text}\n" for turn in episode]
        assert "".join(shown) in said, (shown, said)
        assert "Traceback" not in said


def test_settings_that_cannot_be_read_are_one_line(saved: Path, tmp_path: Path, capsys) -> None:
    for text in ("{", '{"run": "x"}'):
        (tmp_path / FILE).write_text(text)
        for command in ("eval", "chat"):
            assert main([command, str(tmp_path)]) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1
            assert "remove it and give the settings as options" in lines[0]


def test_the_settings_are_part_of_the_whole_checkpoint(saved: Path, tmp_path: Path) -> None:
    assert checkpoint.damage(saved) is None
    assert FILE in json.loads((saved / "manifest.json").read_text())
