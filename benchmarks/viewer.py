"""The viewer at 10^6 trajectories: time to the first page, filters, bodies, how far behind, memory.

    python benchmarks/viewer.py [--quick]

Bars, both while the index is being built and afterwards: first page within 0.5 s, a filter within 1 s; a new line is
shown within 1 s; memory of the server and its indexer within 500 MB. With `--quick` (10^4 trajectories) also what a
notebook does: `json.loads` of every line into a list, then a list comprehension a filter. 10^6 would take it 30 GB.
Trajectories are synthetic: 2,000 different ones, repeated under other ids and steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import psutil

RUN = "/api/runs/run"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from synthetic_runs import tokenizer, training_records, update  # noqa: E402

FIRST_PAGE_S, FILTER_S, BEHIND_S, MEMORY_MB = 0.5, 1.0, 1.0, 500
ASKED: tuple[dict[str, Any], ...] = (
    {"filters": "wrong,error"},
    {"filters": "late", "sort": "response_length", "descending": True},
    {"query": "NameError"},
    {"error": "NameError", "sort": "advantage"},
    {"step": "40"},
)
FILTERS = ("filter wrong + error", "late, longest first", "search a word", "one error, by advantage", "one step")
PEER = """
import json, resource, sys, time
start = time.perf_counter()
rows = [json.loads(line) for line in open(sys.argv[1])]
loaded = time.perf_counter() - start
start = time.perf_counter()
wrong = [row for row in rows if "update" not in row and row["reward"] <= 0.5
         and any(e and e["status"] != "ok" for t in row["turns"] for e in t["executions"])]
print(loaded, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write(folder: Path, count: int) -> Path:
    distinct = list(training_records(2000, problems=500))
    tokenizer().save(str(folder / "tokenizer.json"))
    path = folder / "trajectories.jsonl"
    batch: list[dict] = []
    with path.open("w") as file:
        for i in range(count):
            record = distinct[i % len(distinct)]
            task, dispatch = f"{record['task_id']}-{i // len(distinct)}", {**record["dispatch"], "event": i}
            batch.append({**record, "step": i // 128, "task_id": task, "dispatch": dispatch})
            file.write(json.dumps(batch[-1], separators=(",", ":")) + "\n")
            if len(batch) == 128:
                file.write(json.dumps(update(batch), separators=(",", ":")) + "\n")
                batch = []
    return path


def timed(client: httpx.Client, path: str, **parameters: Any) -> float:
    start = time.perf_counter()
    answer = client.get(path, params=parameters)
    answer.raise_for_status()
    return time.perf_counter() - start


def median(client: httpx.Client, path: str, times: int = 7, **parameters: Any) -> float:
    return statistics.median(timed(client, path, **parameters) for _ in range(times))


def behind(client: httpx.Client, folder: Path, count: int) -> float:
    """Seconds from a line's end of writing until the page that follows it, which asks twice a second, can show it."""
    line = json.dumps({**next(training_records(1)), "step": 0})
    waits = []
    for i in range(5):
        with (folder / "trajectories.jsonl").open("a") as file:
            file.write(line + "\n")
        start = time.perf_counter()
        while client.get("/api/runs").json()[0]["rows"] < count + i + 1:
            time.sleep(0.5)
        client.get(f"{RUN}/rows", params={"sort": "id", "descending": True, "limit": 1}).raise_for_status()
        waits.append(time.perf_counter() - start)
    return max(waits)


def serve(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "solostream", "view", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    return server, server.stdout.readline().split()[0]


def measure(folder: Path, count: int) -> list[tuple[str, float, str, float | None]]:
    """(what, value, unit, bar)"""
    server, address = serve(folder)
    process = psutil.Process(server.pid)
    try:
        with httpx.Client(base_url=address, timeout=60) as client:
            cold = timed(client, f"{RUN}/rows")
            rows: list[tuple[str, float, str, float | None]] = [
                ("first page, nothing indexed yet", cold, "s", FIRST_PAGE_S)
            ]
            start, during, pages = time.perf_counter(), [0.0], [0.0]
            for asked in cycle(ASKED):  # while the index is built
                if client.get("/api/runs").json()[0]["rows"] >= count:
                    break
                during.append(timed(client, f"{RUN}/rows", **asked))
                pages.append(timed(client, f"{RUN}/rows"))
                time.sleep(0.25)
            built = time.perf_counter() - start
            rows.append(("first page while indexing, worst", max(pages), "s", FIRST_PAGE_S))
            rows.append(("filter while indexing, median", statistics.median(during), "s", FILTER_S))
            rows.append((f"filter while indexing, worst of {len(during) - 1}", max(during), "s", FILTER_S))
            rows.append(("index built in the background", built, "s", None))
            ask = f"{RUN}/rows"
            rows.append(("first page", median(client, ask), "s", FIRST_PAGE_S))
            rows.append(("last page", median(client, ask, offset=count - 100), "s", FIRST_PAGE_S))
            for what, asked in zip(FILTERS, ASKED, strict=True):
                rows.append((what, median(client, ask, **asked), "s", FILTER_S))
            rows.append(("counts of all filters", median(client, f"{RUN}/counts"), "s", FILTER_S))
            rows.append(("one trajectory with its tokens", median(client, f"{ask}/{count // 2}"), "s", None))
            rows.append(("start page", median(client, "/api/runs"), "s", FIRST_PAGE_S))
            rows.append(("a new line is shown after, worst of 5", behind(client, folder, count), "s", BEHIND_S))
            rows.append(("tracker tab", median(client, f"{RUN}/tracker", 1), "s", None))
            rows.append(("hardest problems", median(client, f"{RUN}/problems", 1), "s", None))
            rows.append(("server memory (RSS)", process.memory_info().rss / 2**20, "MB", None))
            whole = process.memory_info().rss + sum(child.memory_info().rss for child in process.children())
            rows.append(("server and indexer memory (RSS)", whole / 2**20, "MB", MEMORY_MB))
            return rows
    finally:
        server.terminate()
        server.wait(20)


def load_all(path: Path) -> list[float]:
    """Seconds to load, seconds to filter, MB of what a notebook does."""
    done = subprocess.run([sys.executable, "-c", PEER, str(path)], capture_output=True, text=True, check=True)
    return [float(value) for value in done.stdout.split()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10^4 trajectories")
    quick = parser.parse_args().quick
    count = 10_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        path = write(folder, count)
        print(f"{count:,} trajectories, {path.stat().st_size / 2**20:.0f} MB")
        rows = measure(folder, count)
        print(f"index {(folder / '.trajectories.jsonl.index').stat().st_size / 2**20:.0f} MB")
        peer = load_all(path) if quick else None
    for what, value, unit, bar in rows:
        verdict = "" if bar is None else f"bar {bar:g} {unit}: {'met' if value <= bar else 'MISSED'}"
        print(f"{what:<40}{value:>10.3f} {unit:<3} {verdict}")
    if peer is not None:
        loaded, filtered, memory = peer
        print(f"full load in Python: {loaded:.1f} s, {memory:,.0f} MB; filter {filtered:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
