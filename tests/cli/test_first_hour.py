"""What a stranger types first: help, a version, a configuration to edit; scripts and notebooks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import solostream
from solostream.cli.main import COMMANDS, main
from solostream.errors import UserError
from solostream.training.config import load
from solostream.training.config.parse import recipes

TINY = Path(__file__).parents[1] / "training" / "run" / "tiny.toml"


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_every_way_to_ask_for_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("words", [["sandbox"], ["sandbox", "--help"], ["help", "sandbox"]])
def test_a_group_lists_its_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "usage: solostream sandbox COMMAND" in shown
    assert "sandbox serve" in shown
    assert "play" not in shown


def test_help_of_one_command_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["help", "eval"])
    assert "--columns" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"solostream {solostream.__version__}\n"


@pytest.mark.parametrize("recipe", recipes())
def test_init_writes_a_configuration_that_is_one(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--from", recipe]) == 0
    assert load(Path("mine.toml")) == load(Path(recipe))
    assert Path("mine.toml").read_text(encoding="utf-8").count("#") > 1
    assert main(["init", "mine"]) == 2
    assert "mine.toml exists" in capsys.readouterr().err
    assert main(["init", "other", "--from", recipe + "s"]) == 2
    assert recipe in capsys.readouterr().err


def test_doctor_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for what in (
        "train",
        "server",
        "vLLM",
        "GPU",
        "sandbox fork",
        "packages in it",
        "user namespaces",
        "cgroups",
        "Docker",
        "Chromium",
    ):
        assert f" {what} " in shown
    assert "✓ train " in shown
    assert "torch" in shown.splitlines()[0]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("solostream tr", ["train"]),
        ("solostream sandbox ", ["check", "run", "serve"]),
        ("solostream sandbox serve --wor", ["--workers"]),
        ("solostream eval x --col", ["--columns"]),
        ("solostream train x.toml --dr", ["--dry-run"]),
    ],
)
def test_bash_completes(typed: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = typed.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    asks = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _solostream; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{asks}"], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == expected


def test_the_other_shells_get_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
    assert main(["completion", "fish"]) == 0
    fish = capsys.readouterr().out
    assert all(f"-a {name.split()[-1]} " in fish for name in COMMANDS)
    assert "__fish_seen_subcommand_from serve' -l workers" in fish


def test_a_latin_1_terminal_gets_the_last_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "solostream", "train", str(TINY), "--name", "t", "--set", f"run.root={tmp_path}"]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    more = ["--set", "run.steps=1", "--set", "cold_start.phases=[]"]
    done = subprocess.run([*command, *more], capture_output=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr
    assert b"accuracy, sampled" in done.stdout
    summary = json.loads((tmp_path / "t/summary.json").read_text())["provenance"]
    assert summary["solostream"] == solostream.__version__
    assert summary["python"] == sys.version.split()[0]
    assert summary["torch"]
    assert len(summary["commit"].rstrip("+")) == 40
    assert main(["report", str(tmp_path / "t")]) == 0
    foot = (tmp_path / "t/report.html").read_text().rpartition("<footer>")[2]
    assert f"solostream {solostream.__version__} ({summary['commit'][:12]}" in foot
    assert f"{summary['cores']} cores of" in foot
    assert "; seed 0<br>" in foot


def test_train_and_evaluate_in_a_script_and_in_a_running_loop(tmp_path: Path) -> None:
    settings = {"run.root": tmp_path, "run.steps": 1, "cold_start.phases": []}
    first = solostream.train(TINY, settings, name="script")

    async def cell() -> tuple[solostream.TrainResult, solostream.Evaluation]:
        again = solostream.train(TINY, settings, name="notebook")
        return again, solostream.evaluate(str(again.checkpoint), out=tmp_path / "out", k=2)

    second, found = asyncio.run(cell())
    assert first.summary.after == second.summary.after  # of one seed, in the synchronous mode
    assert first.checkpoint == tmp_path / "script" / "checkpoints" / "step-000001"
    assert found.samples == 8
    assert found.complete
    assert found.interval is not None
    assert found.interval[0] <= found.accuracy <= found.interval[1]
    with pytest.raises(UserError, match="exists"):
        solostream.train(TINY, settings, name="script")


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", f"run.root={tmp_path}", "--set", "env.sandbox=jupyter"]
    broken = ["--set", "env.options.sandbox_options={python='/no/such/python'}"]
    assert main(["train", str(TINY), "--name", "t", *settings, *broken]) != 0
    assert not (tmp_path / "t").exists(), list((tmp_path / "t").iterdir())
    assert capsys.readouterr().err.count("solostream:") == 1


@pytest.mark.filterwarnings("ignore:reward 'code_tests' failed")
def test_code_tests_on_data_without_tests_blame_the_data_and_not_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sums.jsonl").write_text('{"question": "What is 3 + 14?", "answer": "17"}\n')
    (tmp_path / "says_17.py").write_text("def policy(messages):\n    return '<answer>17</answer>'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("solostream.envs.rewards.calls.failures", {})
    assert main(["eval", "scripted:says_17:policy", "--env", "solostream/CodeTests-v0", "--data", "sums.jsonl"]) == 1
    said = capsys.readouterr().err
    assert "no episode has a reward, as the warnings say: 'code_tests' (1 × ValueError)" in said
    assert "sandbox" not in said


def test_where_the_terminal_is_not_utf_8_the_files_are(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"question": "3 € and 14 €?", "answer": "17"}\n', encoding="utf-8")
    (tmp_path / "says_17.py").write_text("def policy(text):\n    return '17 \u20ac: \\\\boxed{17}'\n", encoding="utf-8")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    command = [sys.executable, "-m", "solostream", "eval", "scripted:says_17:policy", "--data", "sums.jsonl"]
    done = subprocess.run([*command, "--out", "e"], capture_output=True, env=env, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert b"100.0 %" in done.stdout
    assert done.stdout.isascii()  # what the terminal cannot show is a question mark
    assert "17 €" in (tmp_path / "e" / "samples.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "e" / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


@pytest.mark.parametrize(
    ("module", "body", "said"),
    [
        (
            "bad_key",
            "return text[0]['role']",
            "raised TypeError: string indices must be integers, not 'str' (bad_key.py, line 2)",
        ),
        ("bad_type", "return 17", "returned a int, not text"),
    ],
)
def test_a_policy_that_fails_is_told_in_one_line(
    module: str,
    body: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "sums.jsonl").write_text('{"question": "What is 3 + 14?", "answer": "17"}\n')
    (tmp_path / f"{module}.py").write_text(f"def policy(text):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", f"scripted:{module}:policy", "--data", "sums.jsonl"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert said in told
    assert "a policy gets the whole text so far" in told


# What a script writes and reads is UTF-8, and says so: Python's EncodingWarning tells of every place that does not.
SCRIPT = """
import warnings
from pathlib import Path
warnings.filterwarnings("error", category=EncodingWarning, module="solostream")
import solostream
from solostream.viewer.report import write_report
result = solostream.train("tiny.toml", {"run.steps": 1, "cold_start.phases": []}, name="t")
assert solostream.evaluate(str(result.checkpoint), out=Path("e"), k=1).complete
write_report(Path("runs/t"))
"""


def test_a_script_needs_no_locale(tmp_path: Path) -> None:
    rows = [{"question": f"{i} € and 3 €?", "answer": str(i + 3)} for i in range(60)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "sums.jsonl").write_text(lines, encoding="utf-8")
    tiny = TINY.read_text(encoding="utf-8").replace('kinds = ["gcd"]\nlevels = [1]\n', 'path = "sums.jsonl"\n')
    (tmp_path / "tiny.toml").write_text(tiny, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    plain = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-X", "warn_default_encoding", "script.py"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **plain}, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"accuracy, sampled" in done.stdout
    assert done.stdout.isascii()
    assert "€" in (tmp_path / "runs/t/trajectories.jsonl").read_text(encoding="utf-8")
    assert "€" in (tmp_path / "e/samples.jsonl").read_text(encoding="utf-8")
