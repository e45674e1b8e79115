"""What a stranger installs: a wheel without extras, in a fresh environment, in a folder with names like our floors'."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOSTILE = ("agent.py", "training.py", "viewer.py", "errors.py", "envs/__init__.py", "sandbox/__init__.py")


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and what it needs, nothing else."""
    place = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-q", "--no-deps", "-w", str(place), str(ROOT))
    venv.create(place / "venv", with_pip=False)
    (wheel,) = place.glob("*.whl")
    pip("--python", str(place / "venv/bin/python"), "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel))
    return place / "venv/bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("work")
    for name in HOSTILE:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("raise RuntimeError('this is not solostream')\n")
    (place / "hello.py").write_text("6 * 7\n")
    (place / "rows.parquet").write_bytes(b"PAR1")
    return place


def run(fresh: Path, folder: Path, line: str, module: bool) -> subprocess.CompletedProcess[str]:
    program = [str(fresh / "python"), "-m", "solostream"] if module else [str(fresh / "solostream")]
    return subprocess.run(
        [*program, *line.split()], capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL, timeout=100
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--version", "solostream 0."),
        ("help", "sandbox serve"),
        ("doctor", "pip install 'solostream[train]'"),
        ("init mine --from quickstart", "mine.toml: edit it"),
        ("sandbox run fork hello.py", "42"),
        ("completion bash", "complete -o default"),
        ("train --help", "--dry-run"),
    ],
)
@pytest.mark.parametrize("module", [False, True])
def test_what_needs_no_extra_works(fresh: Path, folder: Path, line: str, words: str, module: bool) -> None:
    (folder / "mine.toml").unlink(missing_ok=True)
    done = run(fresh, folder, line, module)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("train quickstart", "train"),
        ("train quickstart --dry-run", "train"),
        ("eval chat:http://127.0.0.1:9#m", "endpoint"),
        ("eval http://127.0.0.1:9", "server"),
        ("eval scripted:json:loads", "train"),
        ("eval some/model", "train"),
        ("chat some/model", "train"),
        ("play --tasks gsm8k", "train"),
        ("play --tasks rows.parquet", "train"),
        ("view .", "server"),
        ("sandbox serve", "server"),
        ("sandbox check docker", "docker"),
        ("sandbox check jupyter", "jupyter"),
    ],
)
def test_what_needs_an_extra_names_it_in_one_line(fresh: Path, folder: Path, line: str, extra: str) -> None:
    done = run(fresh, folder, line, False)
    assert done.returncode in (1, 2)
    (said,) = done.stderr.splitlines()
    assert f"pip install 'solostream[{extra}]'" in said
    assert not (folder / "runs").exists()
    assert not list(folder.glob("evals/*/*"))
