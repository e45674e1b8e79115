"""examples/notebook.ipynb runs as it stands, in a kernel of its own: an event loop is running there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

PLACE = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def test_the_notebook_trains_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(PLACE, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # it is kept without what it printed
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    NotebookClient(notebook, timeout=200, km=manager, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]
    before, after = eval(shown[1])
    summary = json.loads((tmp_path / "runs/notebook/summary.json").read_text())
    assert (summary["before"]["accuracy"], summary["after"]["accuracy"]) == (before, after)
    assert eval(shown[2])[2] == 8
    assert eval(shown[3])[1] == "42"
