"""The local web app behind `solostream view`: pages of an index as JSON, one body at a time, and a static front end.

What a model wrote is data: it travels as JSON, the front end only ever sets it as text, and the Content-Security-Policy
allows no script but the app's own files. Requests for another host name are refused (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.evaluation.tool_use import observe
from solostream.viewer.index import FILTERS
from solostream.viewer.runs import Runs, Source

STATIC = Path(__file__).parent / "static"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(places: Sequence[Path], *, tokenizer: Path | None = None, hosts: Sequence[str] = ()) -> FastAPI:
    """The app over runs and folders of them. hosts: names besides localhost that reach it. Raises UserError."""
    shown = Runs(places, tokenizer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        with shown.followed():
            yield

    app = FastAPI(title="solostream view", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1", *hosts])

    @app.middleware("http")
    async def harden(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(UserError)
    async def refuse(_: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 400)

    app.include_router(_api(shown))

    @app.get("/")
    def front() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _api(shown: Runs) -> APIRouter:
    """What the front end asks for: runs, their rows a page at a time, one trajectory, one task."""
    api = APIRouter(prefix="/api")

    def source(run: int) -> Source:
        if not 0 <= run < len(shown.sources):
            raise HTTPException(404, f"there is no run {run}")
        return shown.sources[run]

    @api.get("/runs")
    def runs() -> list[dict[str, Any]]:
        shown.discover()
        return [
            {
                "name": s.name,
                "path": str(s.path),
                "tokens": s.pieces is not None,
                "trouble": s.trouble,
                **s.index.status(),
            }
            for s in shown.sources
        ]

    @api.get("/runs/{run}/rows")
    def rows(
        run: int, filters: str = "", query: str = "", sort: str = "id", descending: bool = False,
        offset: int = Query(0, ge=0), limit: int = Query(100, ge=1, le=500),
    ) -> dict[str, Any]:  # fmt: skip
        wanted = [name for name in filters.split(",") if name]
        return source(run).index.page(wanted, query, sort, descending, offset, limit)

    @api.get("/runs/{run}/counts")
    def counts(run: int, query: str = "") -> dict[str, int]:
        return source(run).index.counts(query)

    @api.get("/runs/{run}/rows/{row}")
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

    @api.get("/tasks")
    def task(task_id: str) -> list[list[dict[str, Any]]]:
        """The rows of one task in every run."""
        return [s.index.task(task_id) for s in shown.sources]

    @api.get("/filters")
    def filters() -> list[str]:
        return list(FILTERS)

    return api
