"""The viewer at 10^5 trajectories, against loading the file: time to the first page, filters, bodies, memory.

    python benchmarks/viewer.py [--quick]

Bars, both while the index is being built and afterwards: first page within 0.5 s, a filter within 1 s; memory of the
server and its indexer within 500 MB. The peer is what a notebook does: `json.loads` of every line into a list, then a
list comprehension a filter.
`--quick` uses 10^4 trajectories. Trajectories are synthetic: 2,000 different ones, repeated under other ids and steps.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from synthetic_runs import tokenizer, training_records, update  # noqa: E402

FIRST_PAGE_S, FILTER_S, MEMORY_MB = 0.5, 1.0, 500
ASKED: tuple[dict[str, Any], ...] = (
    {"filters": "wrong,error"},
    {"filters": "late", "sort": "response_length", "descending": True},
    {"query": "NameError"},
)
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
            cold = timed(client, "/api/runs/0/rows")
            rows: list[tuple[str, float, str, float | None]] = [
                ("first page, nothing indexed yet", cold, "s", FIRST_PAGE_S)
            ]
            start, during, pages = time.perf_counter(), [0.0], [0.0]
            for asked in cycle(ASKED):  # while the index is built
                if client.get("/api/runs").json()[0]["rows"] >= count:
                    break
                during.append(timed(client, "/api/runs/0/rows", **asked))
                pages.append(timed(client, "/api/runs/0/rows"))
                time.sleep(0.25)
            built = time.perf_counter() - start
            rows.append(("first page while indexing, worst", max(pages), "s", FIRST_PAGE_S))
            rows.append(("filter while indexing, median", statistics.median(during), "s", FILTER_S))
            rows.append((f"filter while indexing, worst of {len(during) - 1}", max(during), "s", FILTER_S))
            rows.append(("index built in the background", built, "s", None))
            ask = "/api/runs/0/rows"
            rows.append(("first page", median(client, ask), "s", FIRST_PAGE_S))
            rows.append(("last page", median(client, ask, offset=count - 100), "s", FIRST_PAGE_S))
            for what, asked in zip(
                ("filter wrong + error", "filter late, longest first", "search a word"), ASKED, strict=True
            ):
                rows.append((what, median(client, ask, **asked), "s", FILTER_S))
            rows.append(("counts of all filters", median(client, "/api/runs/0/counts"), "s", FILTER_S))
            rows.append(("one trajectory with its tokens", median(client, f"{ask}/{count // 2}"), "s", None))
            rows.append(("server memory (RSS)", process.memory_info().rss / 2**20, "MB", None))
            whole = process.memory_info().rss + sum(child.memory_info().rss for child in process.children())
            rows.append(("server and indexer memory (RSS)", whole / 2**20, "MB", MEMORY_MB))
            return rows
    finally:
        server.terminate()
        server.wait(20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10^4 trajectories")
    count = 10_000 if parser.parse_args().quick else 100_000
    with tempfile.TemporaryDirectory() as place:
        path = write(Path(place), count)
        print(f"{count:,} trajectories, {path.stat().st_size / 2**20:.0f} MB")
        rows = measure(Path(place), count)
        done = subprocess.run([sys.executable, "-c", PEER, str(path)], capture_output=True, text=True, check=True)
        loaded, filtered, memory = map(float, done.stdout.split())
    for what, value, unit, bar in rows:
        verdict = "" if bar is None else f"bar {bar:g} {unit}: {'met' if value <= bar else 'MISSED'}"
        print(f"{what:<40}{value:>10.3f} {unit:<3} {verdict}")
    found = {what: value for what, value, *_ in rows}
    first, both = found["first page, nothing indexed yet"], found["filter wrong + error"]
    print(f"full load in Python: {loaded:.1f} s, {memory:,.0f} MB; filter {filtered:.3f} s")
    used = found["server and indexer memory (RSS)"]
    print(f"first page {loaded / first:,.0f}x sooner, memory {memory / used:.1f}x smaller, "
          f"filter {filtered / both:.2f}x as fast")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
