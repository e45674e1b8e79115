"""Traces as users have them: line ends of Windows, outputs within a turn, calls of tools that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solostream.envs.types import Task
from solostream.training.sft.trace_set import _of_no_test
from tests.training.sft.test_traces import ASK, CODE, END, LAYOUTS, SAY, USER, read


def ended(tree: Any, end: str) -> Any:
    """Every text of a row with `end` for a newline, also in arguments that are JSON."""
    if isinstance(tree, dict):
        return {key: ended(value, end) for key, value in tree.items()}
    if isinstance(tree, list):
        return [ended(value, end) for value in tree]
    return tree.replace("\n", end).replace("\\n", json.dumps(end)[1:-1]) if isinstance(tree, str) else tree


@pytest.mark.parametrize("syntax", ["fence", "retool", "hermes"])
@pytest.mark.parametrize("end", ["\r\n", "\r"], ids=["Windows", "Mac"])
@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_line_ends_of_other_systems_are_read_as_newlines(tmp_path: Path, row: Any, end: str, syntax: str) -> None:
    said = f"{SAY}\n{END}"  # behind the call, too
    row = json.loads(json.dumps(row).replace(json.dumps(END)[1:-1], json.dumps(said)[1:-1]))
    (trace,), _ = read(tmp_path, row, syntax=(syntax,))
    (other,), bad = read(tmp_path, ended(row, end), syntax=(syntax,))
    assert not bad
    assert (other.messages, other.outputs) == (trace.messages, trace.outputs)
    assert other.messages[-1]["content"] == said
    assert [call.code for call in other.calls] == [CODE]


def test_a_progress_bar_stays_as_the_environment_shows_it(tmp_path: Path) -> None:
    row = json.loads(json.dumps(LAYOUTS["OpenAI"]))
    row["messages"][2]["content"] = "10 %\r20 %\r\n42"
    (trace,), _ = read(tmp_path, row)
    assert trace.outputs == ("10 %\r20 %\n42",)


def test_a_held_out_problem_is_known_by_other_line_ends(tmp_path: Path) -> None:
    asked = "What is\r\n6 * 7?"
    rows = [{"prompt": one, "completion": END} for one in (asked, ASK)]
    traces, _ = read(tmp_path, *rows)
    told: list[str] = []
    (kept,) = _of_no_test(traces, [Task("a", asked, "42")], "traces", told.append)  # type: ignore[arg-type]
    assert kept.messages[0] == USER
    assert told == ["traces: 1 of 2 traces are of held-out problems: left out of training"]
