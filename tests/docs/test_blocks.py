"""Every code block of README.md and docs/ as it stands.

Python runs, the blocks of a page one after the other in one namespace, in a folder that holds problems.jsonl and the
files that earlier blocks name in their first line (`# my_sandbox.py`). A block that needs what a test has not says so
after its language (```python network): its imports run, the rest is compiled. Commands are parsed by the program's own
parser; TOML is validated as a configuration.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from solostream.cli import main as cli
from solostream.training import config as configuration

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {"network", "gpu", "model", "server", "docker", "context"}  # context: a fragment of a program of the reader's


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    needs: frozenset[str]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        opened: tuple[int, str] | None = None
        body: list[str] = []
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if opened is None and (fence := re.fullmatch(r"```(\w*(?: \w+)*)", line)):
                opened, body = (number, fence[1]), []
            elif opened is not None and line.rstrip() == "```":
                first, *rest = opened[1].split() or [""]
                found.append(
                    Block(page.relative_to(ROOT).as_posix(), opened[0], first, frozenset(rest), "\n".join(body) + "\n")
                )
                opened = None
            else:
                body.append(line)
        assert opened is None, f"{page.name}: the block of line {opened} has no end"
    return [block for block in found if block.language == language]


def test_what_a_block_needs_is_spelt_as_it_is_known() -> None:
    for language in ("python", "toml", "console", "text", ""):
        for block in blocks(language):
            assert block.needs <= NEEDS, f"{block}: {sorted(block.needs - NEEDS)}"


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}))
def test_python(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {i} + 3?", "answer": str(i + 3)} for i in range(200)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    names: dict[str, object] = {"__name__": "docs"}

    async def read() -> None:
        for block in (block for block in blocks("python") if block.page == page):
            if named := re.match(r"# (\S+\.py)\n", block.text):
                (tmp_path / named[1]).write_text(block.text)
            tree = ast.parse(block.text, str(block))
            if block.needs:
                tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            code = compile(tree, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, names)
            if inspect.iscoroutine(running):
                await running

    asyncio.run(read())


def commands() -> list[tuple[Block, str]]:
    found = []
    for block in blocks("console"):
        for line in block.text.splitlines():
            typed = line.removeprefix("$ ").partition("  #")[0]
            if line.startswith("$ solostream "):
                found.append((block, typed.partition("|")[0].strip()))
    return found


@pytest.mark.parametrize(("block", "typed"), commands(), ids=str)
def test_commands(block: Block, typed: str) -> None:
    name, rest = cli._find(shlex.split(typed)[1:])
    module, _, function = cli.COMMANDS[name][0].partition(":")
    command = getattr(cli.importlib.import_module(module), function)
    cli._parse(command, name, cli._complete(rest))  # raises UserError for an option that it has not


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml(block: Block) -> None:
    tree = tomllib.loads(block.text)
    if not block.needs:
        for _, combination in configuration.expand(tree):
            configuration.validate(combination)
