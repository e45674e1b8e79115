"""What the server refuses, and how it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from browser import serving
from synthetic_runs import training_records

from solostream.cli.view import listen, view
from solostream.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "trajectories.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in training_records(20, problems=5)))
    return path


@pytest.fixture
def client(path: Path) -> Iterator[httpx.Client]:
    with serving([path]) as address, httpx.Client(base_url=address) as client:
        yield client


def test_wrong_questions_get_an_answer(client: httpx.Client) -> None:
    assert client.get("/api/runs/trajectories.jsonl/rows", params={"filters": "wrogn"}).status_code == 400
    assert (
        "unknown filter 'wrogn'"
        in client.get("/api/runs/trajectories.jsonl/rows", params={"filters": "wrogn"}).json()["detail"]
    )
    assert client.get("/api/runs/absent/rows").status_code == 404
    assert client.get("/api/runs/trajectories.jsonl/rows/99").status_code == 404
    assert client.get("/api/runs/trajectories.jsonl/rows", params={"limit": 10**9}).status_code == 422
    assert client.get("/static/../server.py").status_code == 404


def test_another_host_name_is_refused(client: httpx.Client) -> None:
    assert client.get("/api/runs", headers={"Host": "evil.example"}).status_code == 400


def test_a_file_cut_under_the_server_is_said(client: httpx.Client, path: Path) -> None:
    while client.get("/api/runs").json()[0]["rows"] < 20:
        time.sleep(0.01)
    row = client.get("/api/runs/trajectories.jsonl/rows/19").json()
    assert row["record"]["task_id"] == row["row"]["task_id"]
    os.truncate(path, 10)
    answer = client.get("/api/runs/trajectories.jsonl/rows/19")
    assert answer.status_code in (404, 410)


def test_the_indexer_goes_with_the_server_and_its_end_is_said(path: Path) -> None:
    def indexers() -> list[psutil.Process]:
        return [p for p in psutil.Process().children() if "solostream.viewer.follow" in p.cmdline()]

    before = set(indexers())
    with serving([path]) as address:
        (one,) = set(indexers()) - before
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(next(training_records(1))) + "\n")
        while httpx.get(f"{address}/api/runs").json()[0]["rows"] < 21:
            time.sleep(0.05)
        one.kill()
        while not (trouble := httpx.get(f"{address}/api/runs").json()[0]["trouble"]):
            time.sleep(0.05)
        assert "start solostream view again" in trouble
    with serving([path]):
        (one,) = set(indexers()) - before
    assert not one.is_running()


def test_the_indexer_of_a_killed_server_ends(path: Path) -> None:
    command = [sys.executable, "-m", "solostream", "view", str(path), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    address = server.stdout.readline().split()[0]
    while True:
        try:
            httpx.get(f"{address}/api/runs").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.05)
    (indexer,) = psutil.Process(server.pid).children()
    server.kill()
    server.wait()
    server.stdout.close()
    assert psutil.wait_procs([indexer], timeout=30)[1] == []


def test_a_seed_of_63_bits_survives_javascript(tmp_path: Path) -> None:
    record = {**next(training_records(1)), "seed": 2**63 - 1}
    (tmp_path / "samples.jsonl").write_text(json.dumps(record) + "\n")
    with serving([tmp_path]) as address:
        assert httpx.get(f"{address}/api/runs/{tmp_path.name}/rows/0").json()["record"]["seed"] == "9223372036854775807"


def test_port_in_use_names_the_flag() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="choose another with --port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        view((tmp_path / "absent",), port=0)
    (tmp_path / "notes.txt").touch()
    done = subprocess.run([sys.executable, "-m", "solostream", "view", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "neither a run, an evaluation nor a folder of such" in done.stderr
