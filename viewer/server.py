"""The local web app behind `solostream view`: pages of an index as JSON, one body at a time, and a static front end.

What a model wrote is data: it travels as JSON, the front end only ever sets it as text, and the Content-Security-Policy
allows no script but the app's own files. Requests for another host name are refused (DNS rebinding).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import find_file
from solostream.errors import UserError
from solostream.evaluation.tool_use import observe
from solostream.viewer.index import FILTERS, Index
from solostream.viewer.tokens import Pieces, find_tokenizer

STATIC = Path(__file__).parent / "static"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Source:
    """One run that can be looked at: its index and its tokenizer. `trouble`: why its file cannot be followed now."""

    def __init__(self, place: Path, tokenizer: Path | None = None) -> None:
        self.path = find_file(place)
        self.name = place.resolve().name if place.is_dir() else place.name
        self.index = Index(self.path)
        found = tokenizer or find_tokenizer(place)
        self.pieces = Pieces(found) if found else None
        self.trouble: str | None = None


@contextmanager
def following(sources: Sequence[Source]) -> Iterator[None]:
    """Keep the indexes of `sources` up to date, in a process of their own; what troubles it becomes their `trouble`."""
    for source in sources:
        source.index.refresh(100)  # the first page is there when the first request comes
    pairs = [str(path) for source in sources for path in (source.index.place.resolve(), source.path.resolve())]
    command = [sys.executable, "-m", "solostream.viewer.follow", *pairs]
    follower = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # Ctrl+C is for the server
    assert follower.stdin is not None
    assert follower.stdout is not None
    ending = threading.Event()

    def listen(lines: Iterable[str]) -> None:
        for line in lines:
            i, trouble = json.loads(line)
            sources[i].trouble = trouble
        if not ending.is_set():
            for source in sources:
                source.trouble = "indexing has stopped: start solostream view again"

    listener = threading.Thread(target=listen, args=(follower.stdout,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        ending.set()
        follower.stdin.close()  # it ends when it sees that
        follower.wait()
        listener.join()
        follower.stdout.close()


def make_app(places: Sequence[Path], *, tokenizer: Path | None = None, hosts: Sequence[str] = ()) -> FastAPI:
    """The app over one or more runs. hosts: names besides localhost under which it may be reached. Raises UserError."""
    sources = [Source(place, tokenizer) for place in places]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        with following(sources):
            yield

    app = FastAPI(title="solostream view", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1", *hosts])

    @app.middleware("http")
    async def harden(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(UserError)
    async def refuse(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 400)

    def source(run: int) -> Source:
        if not 0 <= run < len(sources):
            raise HTTPException(404, f"there is no run {run}")
        return sources[run]

    @app.get("/api/runs")
    def runs() -> list[dict[str, Any]]:
        return [
            {
                "name": s.name,
                "path": str(s.path),
                "tokens": s.pieces is not None,
                "trouble": s.trouble,
                **s.index.status(),
            }
            for s in sources
        ]

    @app.get("/api/runs/{run}/rows")
    def rows(
        run: int, filters: str = "", query: str = "", sort: str = "id", descending: bool = False,
        offset: int = Query(0, ge=0), limit: int = Query(100, ge=1, le=500),
    ) -> dict[str, Any]:  # fmt: skip
        wanted = [name for name in filters.split(",") if name]
        return source(run).index.page(wanted, query, sort, descending, offset, limit)

    @app.get("/api/runs/{run}/counts")
    def counts(run: int, query: str = "") -> dict[str, int]:
        return source(run).index.counts(query)

    @app.get("/api/runs/{run}/rows/{row}")
    def trajectory(run: int, row: int) -> dict[str, Any]:
        here = source(run)
        try:
            found = here.index.record(row)
            if found is None:
                raise HTTPException(404, f"there is no trajectory {row} in {here.name}")
            fields, record = found
            behaviour = asdict(observe(Trajectory.from_dict(record)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HTTPException(410, f"trajectory {row} is not where it was, the file changed: {error}") from None
        pieces = here.pieces(record["token_ids"]) if here.pieces else None
        record["seed"] = str(record["seed"])  # 63 bits: more than a number in JavaScript holds
        return {"row": fields, "record": record, "behaviour": behaviour, "pieces": pieces}

    @app.get("/api/tasks")
    def task(task_id: str) -> list[list[dict[str, Any]]]:
        """The rows of one task in every run."""
        return [s.index.task(task_id) for s in sources]

    @app.get("/api/filters")
    def filters() -> list[str]:
        return list(FILTERS)

    @app.get("/")
    def front() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app
