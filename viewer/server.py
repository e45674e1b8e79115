"""The local web app behind `solostream view`: pages of an index as JSON, one body at a time, and a static front end.

What a model wrote is data: it travels as JSON, the front end only ever sets it as text, and the Content-Security-Policy
allows no script but the app's own files. Requests for another host name are refused (DNS rebinding).
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.evaluation.tool_use import observe
from solostream.evaluation.training_curves import CHARTS
from solostream.viewer import aggregates, export, overview, scores, trees
from solostream.viewer.index import FILTERS, NARROW
from solostream.viewer.report import write_report
from solostream.viewer.runs import Runs, ViewedRun

STATIC = Path(__file__).parent / "static"
PAGES = {"/": "runs", "/run": "page", "/trajectories": "trajectories", "/compare": "page"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Recipes = Mapping[str, Callable[[], Mapping[str, Any]]]


def make_app(
    places: Sequence[Path],
    *,
    tokenizer: Path | None = None,
    hosts: Sequence[str] = (),
    recipes: Recipes = MappingProxyType({}),
) -> FastAPI:
    """The app over runs and folders of them. Raises UserError.

    hosts: names besides localhost that reach it. recipes: configurations to compare a run's with, by name.
    """
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

    api = APIRouter(prefix="/api")
    _of_all(api, shown, recipes)
    _of_a_run(api, shown)
    _of_a_folder(api, shown)
    _of_trajectories(api, shown)
    app.include_router(api)
    for path, name in PAGES.items():
        app.get(path)(_page(shown, name))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _page(shown: Runs, name: str) -> Callable[[], Response]:
    def page() -> Response:
        if name == "runs" and shown.only is not None:  # nothing to choose from
            return RedirectResponse(f"/run?run={shown.only.name}")
        return FileResponse(STATIC / f"{name}.html")

    return page


def _source(shown: Runs, run: str) -> ViewedRun:
    if (found := shown.find(run)) is None:
        raise HTTPException(404, f"there is no run '{run}'")
    return found


def _of_all(api: APIRouter, shown: Runs, recipes: Recipes) -> None:
    """The runs, what they are drawn by, and two of them side by side."""

    @api.get("/runs")
    def runs() -> list[dict[str, Any]]:
        shown.discover()
        return [_about(source) for source in shown.sources]

    @api.get("/charts")
    def charts() -> list[dict[str, Any]]:
        return [asdict(chart) for chart in CHARTS]

    @api.get("/filters")
    def filters() -> list[str]:
        return list(FILTERS)

    @api.get("/tasks")
    def task(task_id: str) -> list[dict[str, Any]]:
        """The rows of one task in every run."""
        return [{"run": source.name, **row} for source in shown.sources for row in source.index.task(task_id)]

    @api.get("/compare")
    def compare(a: str, b: str, k: int | None = None) -> dict[str, Any]:
        return scores.comparison(_source(shown, a), _source(shown, b), k)

    @api.get("/recipes")
    def names() -> list[str]:
        return list(recipes)

    @api.get("/recipes/{name}")
    def recipe(name: str) -> dict[str, Any]:
        if name not in recipes:
            raise HTTPException(404, f"there is no recipe '{name}'")
        return overview.flat(recipes[name]())


def _about(source: ViewedRun) -> dict[str, Any]:
    index = source.index.status()
    facts = overview.facts(source.place, source.metrics)
    return {"name": source.name, "path": str(source.path), "trouble": source.trouble, **facts, **index}


def _of_a_run(api: APIRouter, shown: Runs) -> None:
    """What the tabs of a run's page show."""

    @api.get("/runs/{run}")
    def about(run: str) -> dict[str, Any]:
        source = _source(shown, run)
        return {**_about(source), "held_out": overview.before_and_after(source.metrics, source.path.parent)}

    @api.get("/runs/{run}/metrics")
    def metrics(run: str, cold_start: int = 0, rl: int = 0, eval: int = 0) -> dict[str, Any]:
        """Numbers over steps, from those rows of each phase on."""
        return _source(shown, run).metrics.since({"cold_start": cold_start, "rl": rl, "eval": eval})

    @api.get("/runs/{run}/tracker")
    def tracker(run: str) -> dict[str, Any] | None:
        return aggregates.tracker(_source(shown, run).index)

    @api.get("/runs/{run}/behaviours")
    def behaviours(run: str) -> dict[str, Any]:
        index = _source(shown, run).index
        return {"errors": aggregates.errors(index), "sources": aggregates.sources(index)}

    @api.get("/runs/{run}/problems")
    def problems(run: str, limit: int = Query(200, ge=1, le=2000)) -> list[dict[str, Any]]:
        return _source(shown, run).index.tasks(limit)

    @api.get("/runs/{run}/evaluation")
    def evaluation(run: str) -> dict[str, Any]:
        return scores.evaluation(_source(shown, run))


def _of_a_folder(api: APIRouter, shown: Runs) -> None:
    """What else a run's folder tells: what it was made from, on which machine, and its files."""

    @api.get("/runs/{run}/configuration")
    def configuration(run: str) -> dict[str, Any]:
        return overview.flat(overview.configuration(_source(shown, run).place))

    @api.get("/runs/{run}/system")
    def system(run: str) -> dict[str, Any]:
        return overview.system(_source(shown, run).place)

    @api.get("/runs/{run}/files")
    def files(run: str) -> list[dict[str, Any]]:
        return overview.files(_source(shown, run).place)

    @api.get("/runs/{run}/report")
    def report(run: str) -> Response:
        """`report.html` as it would be written now; nothing is written into the run's folder."""
        with tempfile.TemporaryDirectory(prefix="solostream-report-") as folder:
            text = write_report(_source(shown, run).place, Path(folder) / "report.html").read_text(encoding="utf-8")
        return _download(text, f"{run}-report.html", "text/html")


def _of_trajectories(api: APIRouter, shown: Runs) -> None:
    """Rows of a run's trajectories a window at a time, and one with all that is known of it."""

    @api.get("/runs/{run}/choices")
    def choices(run: str) -> dict[str, Any]:
        source = _source(shown, run)
        return {**source.index.choices(), "tokens": source.pieces is not None}

    @api.get("/runs/{run}/rows")
    def rows(
        request: Request, run: str, filters: str = "", query: str = "", sort: str = "id", descending: bool = False,
        offset: int = Query(0, ge=0), limit: int = Query(100, ge=1, le=500),
    ) -> dict[str, Any]:  # fmt: skip
        index, wanted = _source(shown, run).index, [name for name in filters.split(",") if name]
        return index.page(wanted, query, sort, descending, offset, limit, _narrow(request))

    @api.get("/runs/{run}/rows/{row}/tree")
    def tree(run: str, row: int) -> list[dict[str, Any]]:
        """The leaves of the tree that it is one of; none for an episode of its own."""
        return trees.tree_of(_source(shown, run).index.select, row)

    @api.get("/runs/{run}/counts")
    def counts(request: Request, run: str, query: str = "") -> dict[str, int]:
        return _source(shown, run).index.counts(query, _narrow(request))

    @api.get("/runs/{run}/rows/{row}")
    def trajectory(run: str, row: int) -> dict[str, Any]:
        here = _source(shown, run)
        fields, record, found = _record(here, row)
        pieces = here.pieces(record["token_ids"]) if here.pieces else None
        record["seed"] = str(record["seed"])  # 63 bits: more than a number in JavaScript holds
        return {"row": fields, "record": record, "behaviour": asdict(observe(found)), "pieces": pieces}

    @api.get("/runs/{run}/rows/{row}/export")
    def exported(run: str, row: int, form: Literal["markdown", "inspect"]) -> Response:
        here = _source(shown, run)
        fields, record, _ = _record(here, row)
        if form == "markdown":
            return _download(export.markdown(fields, record), f"{run}-{row}.md", "text/markdown")
        model = str(overview.facts(here.place, here.metrics)["model"] or here.name)
        return _download(export.inspect_log(fields, record, model, here.name), f"{run}-{row}.json", "application/json")


def _record(here: ViewedRun, row: int) -> tuple[dict[str, Any], dict[str, Any], Trajectory]:
    try:
        found = here.index.record(row)
        if found is None:
            raise HTTPException(404, f"there is no trajectory {row} in {here.name}")
        return (*found, Trajectory.from_dict(found[1]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HTTPException(410, f"trajectory {row} is not where it was, the file changed: {error}") from None


def _narrow(request: Request) -> dict[str, str]:
    return {name: value for name in NARROW if (value := request.query_params.get(name))}


def _download(text: str, name: str, media: str) -> Response:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    return Response(text, media_type=media, headers={"Content-Disposition": f'attachment; filename="{safe}"'})
