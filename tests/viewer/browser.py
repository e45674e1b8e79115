"""Chromium for the tests: absent for a developer means skip, absent in CI means failure."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from solostream.cli.view import listen
from solostream.viewer.server import make_app

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium() -> Iterator:
    """A browser. Skips without Chromium, except under CI."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sync_playwright = None
    if sync_playwright is None or not CHROMIUM.exists():
        why = f"needs playwright and Chromium at {CHROMIUM} (or in $CHROMIUM)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(places: Sequence[Path]) -> Iterator[str]:
    """The viewer's address, on a free port."""
    server = uvicorn.Server(uvicorn.Config(make_app(places), log_level="warning"))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def keep(page, place: Path, name: str) -> Path:
    """A screenshot of the whole page: in $SCREENSHOTS, where CI keeps it for a reader, else in the test's folder."""
    folder = Path(os.environ.get("SCREENSHOTS") or place)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=str(path), full_page=True)
    return path


def violations(page) -> list[str]:
    """What axe finds on the page as it stands."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {[n['html'][:160] for n in v['nodes'][:3]]}" for v in found]


def until(page, expression: str, seconds: float = 20.0) -> None:
    """Wait for a JavaScript expression; one that throws, as for an element not drawn yet, is not true yet.

    (Playwright's own wait evaluates in the page, which the page's CSP forbids.)
    """
    careful = f"() => {{ try {{ return {expression} }} catch {{ return false }} }}"
    wait(page, lambda: page.evaluate(careful), seconds, expression)


def wait(page, true: Callable[[], object], seconds: float = 20.0, what: str = "what was waited for") -> None:
    """Wait until `true()`, while routes and other events of the page are served."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"never true: {what}"
        page.wait_for_timeout(30)
