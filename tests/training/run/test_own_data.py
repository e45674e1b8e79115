"""A stranger's file: one command trains on it, another evaluates on it, an edit is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solostream.cli.main import main
from solostream.training.config import load
from solostream.training.run import setup

TINY = Path(__file__).parent / "tiny.toml"
OWN = ("data.kinds=[]", "data.levels=[]", "data.train=12", "cold_start.phases=[]", "run.steps=1", "rollout.batch=4")


def rows(kind: str, n: int) -> str:
    made = []
    for i in range(n):
        ask, answer = f"What is {i} plus 3?", str(i + 3)
        user = [{"role": "user", "content": ask}]
        made.append(
            {
                "plain": {"question": ask, "answer": answer},
                "trl": {"prompt": user, "solution": answer},
                "verl": {"prompt": user, "reward_model": {"ground_truth": answer}, "data_source": "sums"},
            }[kind]
        )
    return "".join(json.dumps(row) + "\n" for row in made)


def arguments(root: Path, *settings: str) -> list[str]:
    return [word for setting in (*OWN, f"run.root={root}", *settings) for word in ("--set", setting)]


@pytest.mark.parametrize("kind", ["plain", "trl", "verl"])
def test_one_file_trains_in_one_command_and_evaluates_in_one(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "problems.jsonl"
    place.write_text(rows(kind, 200))
    assert main(["train", str(TINY), "--name", "own", *arguments(tmp_path, f"data.path={place}")]) == 0
    assert capsys.readouterr().out.count("rows of the layout") == 1
    seen = {json.loads(line)["task_id"] for line in (tmp_path / "own/trajectories.jsonl").read_text().splitlines()
            if "task_id" in line}  # fmt: skip
    config = load(tmp_path / "own" / "config.toml")
    train, test = setup.problems(config)
    assert (len(train), len(test)) == (12, 4)
    assert seen <= set(train.by_id)
    assert not {t.prompt for t in train} & {t.prompt for t in test}
    assert config.env.id == "solostream/Math-v0"  # whose system message says how to call and to answer
    saved = str(next((tmp_path / "own/checkpoints").glob("step-000001")))
    assert main(["eval", saved, "--out", str(tmp_path / "out")]) == 0
    played = [json.loads(line)["task_id"] for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert sorted(played) == sorted(test.by_id)


def test_resume_refuses_an_edited_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "problems.jsonl"
    place.write_text(rows("plain", 60))
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"prompt": "1 + 1?", "completion": "\\\\boxed{2}"}\n')
    more = arguments(tmp_path, f"data.path={place}", f"env.options.few_shot={examples}")
    root = ["--set", f"run.root={tmp_path}"]
    assert main(["train", str(TINY), "--name", "own", *more]) == 0
    before = (tmp_path / "own/config.toml").read_text()
    assert main(["train", str(TINY), "--name", "own", "--resume", *root]) == 0  # as the run was, not as tiny.toml is
    assert (tmp_path / "own/config.toml").read_text() == before
    assert main(["train", str(tmp_path / "own"), "--resume", "--set", "run.steps=2"]) == 0
    assert json.loads((tmp_path / "own/summary.json").read_text())["steps"] == 2
    capsys.readouterr()
    shown = examples.read_text()
    examples.write_text(shown.replace("1 + 1", "1 + 2"))
    assert main(["train", str(tmp_path / "own"), "--resume"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"the examples of {examples} have changed since the checkpoint" in said
    examples.write_text(shown)
    place.write_text(rows("plain", 60).replace('"answer": "15"', '"answer": "16"'))
    assert main(["train", str(TINY), "--name", "own", "--resume", *more]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "have changed since the checkpoint" in said
    assert str(place) in said


def test_two_files_that_both_count_from_one_and_share_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, first in (("train", 0), ("test", 5)):
        lines = [json.dumps({"id": i, "prompt": f"{first + i}+1?", "answer": first + i + 1}) for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    settings = [s for s in OWN if "train" not in s]
    config = load(TINY, [*settings, f"data.path={tmp_path}", "data.train=5"])
    train, test = setup.problems(config)
    assert "1 training problems are held out as well" in capsys.readouterr().out
    assert sorted(task.prompt for task in train) == [f"{i}+1?" for i in range(5)]
    assert [task.id for task in test] == ["test/0", "test/1", "test/2", "test/3"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.path=problems.jsonl", "data.split=train"], "has no split 'train'"),
        (["data.path=problems.jsonl", "data.columns.prompt=ask"], "no 'ask' (it has: question, answer)"),
        (["data.path=problems.jsonl", "data.layout=verk"], "did you mean 'verl'"),
        (["data.path=problems.jsonl", "data.layout=verl"], "not of the layout"),
        (["data.path=problems.jsonl", "data.test_path=nothing.jsonl"], "no data 'nothing.jsonl'"),
        (
            ["data.path=problems.jsonl", "data.test_path=problems.jsonl", "data.test=99"],
            "every training problem is held out",
        ),
        (["data.path=problems.jsonl", "data.test_share=0.2", "data.test_split=test"], "test_share divides one source"),
        (["data.path=problems.jsonl", "data.test_share=1.0"], "'data.test_share' cannot be 1.0"),
        (["data.path=problems.jsonl", "data.kinds=['gcd']"], "kinds are of generated problems"),
        (["data.test_path=problems.jsonl"], "test_path needs data.path"),
        (["data.path=problems.jsonl", "env.options.system_promt=x"], "did you mean 'system_prompt'"),
        (
            ["data.path=problems.jsonl", "env.id=CartPole-v1"],
            "CartPole-v1 takes no tasks, so nothing would read",
        ),
        (["data.path=problems.jsonl", "env.id=solostream/Maths-v0"], "solostream/Math-v0"),
        (["data.path=problems.jsonl", "algorithm.sampler=dump"], "mix several data sets"),
        (["data.path=problems.jsonl", "algorithm.sampler=hints", "sampler.hints.of=dump"], "mix several data sets"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_will_be_refused_is_refused_by_the_dry_run_too_in_one_short_line(
    settings: list[str],
    words: str,
    dry: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("problems.jsonl").write_text(rows("plain", 40), encoding="utf-8")
    more = arguments(tmp_path, *settings)
    assert main(["train", str(TINY), "--name", "own", *more, *(["--dry-run"] if dry else [])]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert words in said
    assert len(said) < 600
    assert not Path("own").exists()
