"""Search a local corpus: SQLite's FTS5 index, ranked by BM25. Read-only, no network, in this process."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from solostream.envs.data import python_docs
from solostream.envs.workspace import Workspace
from solostream.errors import UserError

BUILTIN = Path(__file__).parents[1] / "data" / "problems" / "facts.jsonl"
PYTHON_DOCS = "python-docs"  # see `envs.data.python_docs`
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=8)
def _index(corpus: str) -> sqlite3.Connection:
    """One index a corpus and process, in memory. Queries take microseconds: they need no thread of their own."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("CREATE VIRTUAL TABLE page USING fts5(title, text, tokenize = 'porter unicode61')")
    connection.executemany("INSERT INTO page VALUES (?, ?)", _pages(Path(corpus)))
    connection.commit()
    return connection


def _pages(corpus: Path) -> Iterator[tuple[str, str]]:
    """(title, text) from JSON lines with these keys, from a folder of .txt and .md files, or of "python-docs"."""
    if str(corpus) == PYTHON_DOCS and not corpus.exists():
        for page in python_docs.pages():
            yield from ((page.name, passage) for passage in page.passages())
    elif corpus.is_dir():
        for path in sorted([*corpus.rglob("*.txt"), *corpus.rglob("*.md")]):
            yield path.stem, path.read_text(encoding="utf-8", errors="replace")
    elif corpus.is_file():
        for number, line in enumerate(corpus.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                yield record["title"], record["text"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f'{corpus}, line {number}: want {{"title": …, "text": …}}') from None
    else:
        raise UserError(
            f"no corpus at {corpus}: give a .jsonl file (title, text), a folder of .txt and .md files, or {PYTHON_DOCS}"
        )


class Search:
    """The `k` best pages for a query; any of its words may match."""

    name = "search"
    description = "Search a reference library and read the passages that match best."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "a few words"}},
        "required": ["query"],
    }

    def __init__(self, corpus: str = str(BUILTIN), k: int = 3) -> None:
        self._index, self._k = _index(str(corpus)), k

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> str:
        """The best passages for arguments["query"], the best first. Raises ValueError for a query without words."""
        words = _WORD.findall(str(arguments["query"]))[:64]
        if not words:
            raise ValueError("the query has no words")
        query = " OR ".join(f'"{word}"' for word in words)  # quoted: no word is an operator
        found = self._index.execute(
            "SELECT title, text FROM page WHERE page MATCH ? ORDER BY rank, rowid LIMIT ?", (query, self._k)
        ).fetchall()
        return "\n\n".join(f"{title}: {text}" for title, text in found) or "nothing found"
