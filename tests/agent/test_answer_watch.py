"""What can never be rewarded is said once: a prompt that leaves no room, and 32 episodes without an answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from solostream.cli.main import main

ROWS = [{"prompt": f"What is {i} + 3?", "answer": str(i + 3)} for i in range(40)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    Path("mute.py").write_text(
        "def never(messages):\n    return 'The answer is 7, I think.'\n"
        "def late(messages):\n    return '\\\\boxed{33}' if 'is 30 ' in messages else 'Who knows.'\n",
        encoding="utf-8",
    )
    return tmp_path


def said(policy: str, limit: int, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    show = warnings.showwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            words = ["--data", "rows.jsonl", "--limit", str(limit), "--concurrency", "1", "--out", policy]
            assert main(["eval", f"scripted:mute:{policy}", *words, *more]) == 0
    finally:
        warnings.showwarning = show
    return capsys.readouterr().err


def test_it_is_said_once_with_a_transcript_and_the_setting(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said("never", 40, capsys)
    assert shown.count("none of the first 32 episodes holds an answer of the style 'boxed'") == 1
    assert "few_shot = 2" in shown
    assert "answer = 'auto'" in shown
    assert "The answer is 7, I think." in shown
    assert "What is 31 + 3?" in shown  # the 32nd problem


@pytest.mark.parametrize(("policy", "limit"), [("never", 31), ("late", 40)])
def test_nothing_is_said_of_fewer_or_where_one_answered(
    policy: str, limit: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none of the first" not in said(policy, limit, capsys)


@pytest.mark.parametrize("answering", ["never", "late"])
def test_a_prompt_that_leaves_no_room_is_said_at_once_and_once(
    answering: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(answering, 3, capsys, "--max-tokens", "50")
    assert shown.count("leaves no room for an answer") == 1
    assert "raise --max-tokens" in shown
    assert "none of the first" not in shown


def test_room_for_a_token_is_room(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "leaves no room" not in said("never", 3, capsys)
