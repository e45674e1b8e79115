"""The docs site: built strictly, complete, and without a request to anybody."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from solostream.cli import main as cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stdout + built.stderr) == (0, "")  # a warning would be printed
    return folder


def test_every_command_and_its_options_are_there(site: Path) -> None:
    page = (site / "reference/commands.html").read_text()
    for name in cli.COMMANDS:
        assert f"usage: solostream {name} " in page
    assert "--api-key-env" in page
    assert "--dry-run" in page


def test_every_key_says_what_it_means(site: Path) -> None:
    page = (site / "reference/configuration.html").read_text()
    rows = [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.S)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)
    ]
    keys = {row[0]: row for row in rows if len(row) == 4}
    assert keys["run.steps"][2] == "40"
    assert keys["env.sandbox"][2] == '"fork"'
    assert keys["data.test_share"][1:3] == ["number", "not set"]
    assert [key for key, row in keys.items() if not all(row)] == []


def test_the_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(r"<(?:link|script|img)[^>]+?(?:href|src)=\"?(https?://[^\s\">]+)", page.read_text())
        assert [url for url in fetched if "rel=canonical" not in url] == [], page


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_repository_lead_somewhere(page: str) -> None:
    """Of the pages outside docs/; mkdocs checks its own."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not re.match(r"https?://|#", target):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_the_badges_say_what_the_repository_says() -> None:
    """Drawn from pyproject.toml; the one that a server draws is of our own workflow, in the repository of our links."""
    drawn = runpy.run_path(str(ROOT / "scripts" / "make-badges.py"))["badges"]()
    readme = (ROOT / "README.md").read_text()
    assert drawn.keys() == {"badge-license.svg", "badge-python.svg"}
    for name, svg in drawn.items():
        assert (ROOT / "docs/pictures" / name).read_text() == svg, "python scripts/make-badges.py"
        assert f"](docs/pictures/{name})" in readme
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f">{' | '.join(('3.11', '3.12', '3.13'))}<" in drawn["badge-python.svg"]
    assert f">{project['license']}<" in drawn["badge-license.svg"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    (served,) = set(re.findall(r"\]\((https?://\S+?)/badge\.svg\)", readme))
    home, _, workflow = served.partition("/actions/workflows/")
    assert home == project["urls"]["Homepage"]
    assert (ROOT / ".github/workflows" / workflow).is_file()
