"""`solostream report` and `view`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from solostream.errors import UserError


def report(run: Annotated[Path, tyro.conf.Positional], /, *, out: Path | None = None) -> int:
    """One self-contained HTML file of a run or an evaluation.

    Args:
        run: Run or evaluation folder, or a .jsonl file of trajectories.
        out: The page; default: report.html in the folder.
    """
    from solostream.viewer.report import write_report

    print(write_report(run, out))
    return 0


def view(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8420,
    tokenizer: Path | None = None,
    open_browser: bool = False,
) -> int:
    """Browse the trajectories of one or more runs or evaluations in a local web app, from their first second on.

    Args:
        runs: Run or evaluation folders, .jsonl files of trajectories, or a folder of runs (those to come, too).
        host: Address to listen on. There is no password: another one than localhost shows the runs to that network.
        port: Port to listen on; 0 takes a free one.
        tokenizer: A tokenizer.json, when none is found with the run.
        open_browser: Open the page in the default browser.
    """
    if not runs:
        raise UserError("name at least one run: solostream view runs/quickstart")
    try:
        import uvicorn

        from solostream.viewer.server import make_app
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'solostream[server]'") from None
    names = ["*" if host in ("0.0.0.0", "::") else host]
    app = make_app(runs, tokenizer=tokenizer, hosts=names, recipes=_recipes())
    with listen(host, port) as listener:
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"{address}  (Ctrl+C stops)", flush=True)
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
    return 0


def _recipes() -> dict[str, Callable[[], dict[str, Any]]]:
    """The configurations that come with solostream, every default filled in; none where training is not installed."""
    try:
        from solostream.training.config.parse import read, recipes, validate
    except ModuleNotFoundError:
        return {}

    def whole(path: Path) -> dict[str, Any]:
        return validate(read(path)).model_dump(mode="json", exclude_none=True)

    return {name: partial(whole, path) for name, path in recipes().items()}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError when the port is taken or the address is not this machine's."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", error)
        raise UserError(f"cannot listen on {host}:{port} ({why}); choose another with --port, or --port 0") from None
