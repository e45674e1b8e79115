"""The command as a stranger meets it: whatever is wrong is one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from solostream.cli.main import COMMANDS, main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: an empty file, one that is no text, one of other rows, an empty folder, a run."""
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("binary.jsonl").write_bytes(b"\xff\xfe\x00\n")
    Path("other.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    Path("nothing").mkdir()
    Path("run/checkpoints/step-000004").mkdir(parents=True)
    Path("evals").mkdir()
    Path("evals/samples.jsonl").write_text("{}\n", encoding="utf-8")
    Path("evals/identity.json").write_text("{", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian", "did you mean 'train'"),
        ("train", "see solostream train --help"),
        ("train a.toml --nmae x", "--name"),
        ("train quickstart --engine vlm --dry-run", "did you mean 'vllm'"),
        ("train smollm2-135m-cpu --dry-run --set cold_start.data=nothere.jsonl", "there are no traces 'nothere.jsonl'"),
        ("train a.toml --set", "Missing value for argument '--set'"),
        ("train nothing", "Is a directory"),
        ("train binary.jsonl", "cannot read binary.jsonl"),
        ("train empty.jsonl --set run.root=other.jsonl/x", "other.jsonl/x"),
        ("sft empty.jsonl", "there is no cold start"),
        (
            "sft empty.jsonl --data t.jsonl",
            "--set cold_start.data=t.jsonl (traces) or --set data.path=t.jsonl (problems)",
        ),
        ("train empty.jsonl --seed 3 --data=a.csv", "--set data.path=a.csv (problems) or --set cold_start.data=a.csv"),
        ("train empty.jsonl --traces --dry-run", "--set cold_start.data=FILE (traces); see"),
        ("eval", "a model folder or hugging face id"),
        ("eval run", "such as run/checkpoints/step-000004"),
        ("eval nothing", "cannot load 'nothing'"),
        ("eval scripted:json:loads -k x", "invalid literal"),
        ("eval scripted:json:loads --data empty.jsonl", "holds no task"),
        ("eval scripted:json:loads --data binary.jsonl", "line 1: not JSON"),
        ("eval scripted:json:loads --data other.jsonl", "no 'prompt'"),
        ("eval scripted:json:loads --out other.jsonl", "other.jsonl: File exists"),
        ("eval scripted:json:loads --out evals", "cannot read evals/identity.json"),
        ("eval scripted:json:loads --temperature -1", "a temperature of 0 (greedy) or from 0.001 to 1000"),
        ("eval scripted:json:loads --temperature nan", "temperature nan, top-p 0.95"),
        ("eval scripted:json:loads --temperature 1e-40", "temperature 1e-40"),
        ("eval scripted:json:loads --temperature inf", "temperature inf"),
        ("eval scripted:json:loads --top-p nan", "top-p nan"),
        ("eval scripted:json:loads --top-k 2147483648", "from 0 (off) up to 2147483647"),
        ("eval chat:http://127.0.0.1:9#m --temperature nan", "temperature nan"),
        ("eval chat:http://127.0.0.1:9#m --prices nan 1", "--prices takes two numbers"),
        ("chat scripted:json:loads --temperature nan", "temperature nan"),
        ('eval scripted:json:loads --env-options {"timeout_s":-1}', "timeout_s=-1 is no time-out"),
        ('eval scripted:json:loads --env-options {"time_limit_s":NaN}', "time_limit_s=nan is no time-out"),
        ('eval scripted:json:loads --env-options {"turn_tokens":-1}', "turn_tokens must be at least 1"),
        ('eval scripted:json:loads --env-options {"max_turns":2.5}', "max_turns must be at least 1, a whole number"),
        ('eval scripted:json:loads --env-options {"retries":-1}', "retries=-1: give a whole number, 0 or more"),
        ("train quickstart --set rollout.temperature=1e-40 --dry-run", "'rollout.temperature' cannot be 1e-40"),
        ("train quickstart --set eval.temperature=nan --dry-run", "'eval.temperature'"),
        ("eval scripted:json:loads --seed -1", "a seed of -1 is none: give a whole number from 0"),
        ("eval scripted:json:loads --seed 9223372036854775808", "to 9223372036854775807"),
        ("eval chat:http://127.0.0.1:9#m --seed -1", "a seed of -1"),
        ("distill scripted:json:loads --seed -1", "a seed of -1"),
        ("chat scripted:json:loads --seed -1", "a seed of -1"),
        ("play --seed -1", "a seed of -1"),
        ("train quickstart --seed -1 --dry-run", "'run.seed' cannot be -1"),
        ("sft quickstart --seed 9223372036854775808 --dry-run", "'run.seed' cannot be 9223372036854775808"),
        ("eval scripted:json:loads --turn-tokens 0", "at least 1"),
        ("eval scripted:json:loads --env nowhere:solostream/Math-v0", "No module named 'nowhere'"),
        ("sandbox check fork --jobs 0", "--jobs is at least 1"),
        ("sandbox serve --port 0 --sandbox frok", "did you mean 'fork'"),
        ("play json:loads", "does not take these settings"),
        ("play json:JSONEncoder", "only a ToolEnv"),
        ("check loss gspo --options [1]", "--options must be a JSON object"),
        ("check tool json:loads", "missing a required argument"),
        ("chat run", "such as run/checkpoints/step-000004"),
        ("chat scripted:json:loads --top-p 7", "top-p above 0"),
        ("chat scripted:json:loads --max-tokens 0", "at least 1"),
        ("chat scripted:json:loads --syntax fences", "unknown syntax 'fences'"),
        ("chat scripted:json:loads --sandbox frok", "did you mean 'fork'"),
        ("compare other.jsonl", "see solostream compare --help"),
        ("compare nothing nothing", "neither trajectories.jsonl"),
        ("compare other.jsonl other.jsonl", "field 'turns' is missing"),
        ("report binary.jsonl", "damaged"),
        ("report nothing", "neither trajectories.jsonl"),
        ("view", "solostream view runs/quickstart"),
        ("view gone", "no run at gone"),
        ("sandbox run", "see solostream sandbox run --help"),
        ("sandbox run fork nothing", "cannot read nothing"),
        ("sandbox run frok other.jsonl", "did you mean 'fork'"),
        ("sandbox serve --port 99999", "port"),
        ("view evals --tokenizer nothing", "nothing is no tokenizer.json"),
        ("view evals --port 99999", "port"),
        ("sandbox check frok", "did you mean 'fork'"),
    ],
)
def test_a_mistake_is_one_line(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("solostream: ")
    assert words.lower() in said[0].lower()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert not ended.value.code
    shown = capsys.readouterr()
    assert f"usage: solostream {name}" in shown.out
    assert shown.err == ""


def test_what_a_mistake_quotes_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with other columns: their names, of whatever somebody wrote, stay in the one line."""
    (tmp_path / "odd.csv").write_text('"a\nb","c\x1b[2J"\n1,2\n', encoding="utf-8")
    assert main(["eval", "scripted:json:loads", "--data", str(tmp_path / "odd.csv")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("solostream: ")
    assert r"c\x1b[2J" in said
    assert "\x1b" not in said
