"""A run before its first trajectory, and a folder of runs that grows while it is looked at."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
from browser import serving, until
from synthetic_runs import training_records

from solostream.cli.main import main
from solostream.errors import UserError
from solostream.viewer.runs import Runs


def begin(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[run]\n")
    return folder


def write(folder: Path, n: int) -> None:
    with (folder / "trajectories.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in training_records(n, problems=5))


def rows(address: str) -> dict[str, int]:
    return {run["name"]: run["rows"] for run in httpx.get(f"{address}/api/runs").json()}


def wait(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_is_shown_from_its_first_second(tmp_path: Path) -> None:
    run = begin(tmp_path / "young")
    with serving([run]) as address:
        assert rows(address) == {"young": 0}
        assert httpx.get(f"{address}/api/runs/young/rows").json() == {"total": 0, "rows": []}
        assert [r["trouble"] for r in httpx.get(f"{address}/api/runs").json()] == [None]
        write(run, 7)
        wait(lambda: rows(address) == {"young": 7})


def test_an_evaluation_too(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{}")
    (source,) = Runs([tmp_path]).sources
    assert source.path == tmp_path / "samples.jsonl"


def test_a_folder_of_runs_lists_them_and_those_that_begin_later(tmp_path: Path) -> None:
    write(begin(tmp_path / "runs/b"), 3)
    (tmp_path / "runs" / "notes").mkdir()
    with serving([tmp_path / "runs"]) as address:
        wait(lambda: rows(address) == {"b": 3})
        write(begin(tmp_path / "runs/a"), 4)
        wait(lambda: rows(address) == {"b": 3, "a": 4})  # in the order of their coming: addresses stay
        write(tmp_path / "runs/a", 2)
        wait(lambda: rows(address)["a"] == 6)


def test_a_folder_of_anything_else_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").touch()
    assert main(["view", str(tmp_path)]) == 2
    assert "neither a run, an evaluation nor a folder of such" in capsys.readouterr().err
    with pytest.raises(UserError, match="no run at"):
        Runs([tmp_path / "gone"])


def test_the_page_waits_for_the_first_run_and_shows_it(browser, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with serving([tmp_path / "runs"]) as address:
        page = browser.new_page()
        page.goto(f"{address}/trajectories")
        until(page, "document.getElementById('state').textContent === 'no run yet'")
        write(begin(tmp_path / "runs/first"), 5)
        until(page, "document.getElementById('run').textContent.startsWith('first (')")
        until(page, "document.querySelectorAll('#rows .row').length === 5")
        until(page, "document.querySelectorAll('#rows .picked').length === 1")
