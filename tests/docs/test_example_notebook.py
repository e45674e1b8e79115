"""The notebooks of examples/ run as they stand, each in a kernel of its own: an event loop is running there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from chat_server import Answer, call, message, serving
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def client(name: str, folder: Path) -> NotebookClient:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # it is kept without what it printed
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    return NotebookClient(notebook, timeout=900, km=manager, resources={"metadata": {"path": str(folder)}})


def shown(played: NotebookClient) -> list[str]:
    """The value that each cell ends with, as text."""
    return [
        output["data"]["text/plain"]
        for cell in played.nb.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_notebook_trains_and_evaluates(tmp_path: Path) -> None:
    played = client("notebook", tmp_path)
    played.execute()
    values = shown(played)
    before, after = eval(values[1])
    summary = json.loads((tmp_path / "runs/notebook/summary.json").read_text())
    assert (summary["before"]["accuracy"], summary["after"]["accuracy"]) == (before, after)
    assert eval(values[2])[2] == 8
    assert eval(values[3])[1] == "42"


def test_an_environment_in_forty_lines(tmp_path: Path) -> None:
    played = client("environment", tmp_path)
    played.execute()
    _, rewards, seen = map(eval, shown(played))
    assert len(rewards) == 2
    assert set(rewards.values()) == {1.0}
    assert seen[1] == "43"
    assert "ZeroDivisionError" in seen[2]
    assert re.search("PermissionError|FileNotFound", seen[3])


def test_an_advantage_in_thirty_lines(tmp_path: Path) -> None:
    played = client("advantage", tmp_path)
    played.execute()
    _, broken, _, means = shown(played)
    assert eval(broken) == []
    written = [json.loads(line) for line in (tmp_path / "runs/short-matters/metrics.jsonl").open()]
    assert eval(means) == [row["reward/mean"] for row in written if row["phase"] == "rl"]


async def test_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(body: dict[str, Any], number: int) -> Answer:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return message(rf"It is \boxed{{{last['content'].strip()}}}.")
        a, b = re.findall(r"\d+", last["content"])
        return message(None, tool_calls=[call(f"print({a} * {b} + ({a} == 29))")], finish="tool_calls")

    async with serving(say) as server:
        monkeypatch.setenv("ENDPOINT", f"{server.url}#a-model")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        played = client("endpoint", tmp_path)
        await played.async_execute()
    values = shown(played)
    accuracy, interval, samples, code_ratio = eval(values[-2])
    assert (accuracy, samples, code_ratio) == (0.75, 8, 1.0)  # one of the four is made wrong
    assert interval[0] < 0.75 < interval[1]
    files, usage = eval(values[-1])
    assert {"samples.jsonl", "summary.json"} <= set(files)
    assert usage["completion_tokens"] == 8 * 2 * 7
