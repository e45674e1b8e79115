"""A cold start teaches no failures: demonstrations that are right and go wrong stop the run in one line."""

import sys
import venv
from pathlib import Path

import pytest
import torch

from solostream.cli.main import main

TINY = Path(__file__).parents[1] / "run" / "tiny.toml"


def start(folder: Path, *settings: str) -> int:
    words = [word for setting in (f"run.root={folder}", *settings) for word in ("--set", setting)]
    threads = torch.get_num_threads()
    try:
        return main(["sft", str(TINY), "--name", "own", *words])
    finally:
        torch.set_num_threads(threads)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("solostream: ")]
    assert len(lines) == 1, shown
    assert "Traceback" not in shown.err
    return lines[0]


def test_code_that_fails_in_sessions_without_the_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real sandbox whose Python has no sympy; half of the demonstrations do without."""
    venv.create(tmp_path / "bare", symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    settings = ('data.kinds=["gcd", "primesum"]', "env.turn_tokens=48", "env.episode_tokens=160")
    assert start(tmp_path, *settings) == 2
    told = refused(capsys)
    assert "its code failed in the sandbox with ModuleNotFoundError: No module named 'sympy'" in told
    assert "solostream doctor" in told


@pytest.mark.parametrize(
    ("setting", "ended"),
    [
        ("env.max_turns=1", "it ended as turn_limit with no answer that was read"),
        ('env.options.answer="tag"', "it ended as void with no answer that was read"),
        ('env.options.syntax=["retool"]', "it ended as token_limit with no answer that was read"),
    ],
)
def test_settings_that_leave_right_demonstrations_without_a_reward(
    setting: str, ended: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, setting) == 2
    told = refused(capsys)
    assert ended in told
    assert "no reward" in told
    assert "env.episode_tokens" in told
