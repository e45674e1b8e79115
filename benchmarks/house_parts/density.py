"""How dense the text is of the four parts that a newcomer reads first, by one ruler for any code base.

    python benchmarks/house_parts/density.py [FOLDER ...]

tokens: of Python (no comments, docstrings, line ends) a line that has any, and the same without what says the types of
arguments, results and variables. names: mean length of an identifier, each time that it stands there. comments: lines
with nothing but a comment, of a hundred that are not empty.
"""

from __future__ import annotations

import ast
import io
import keyword
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[2]
READ_FIRST = {
    "learner": ("training/learner",),
    "tracker": ("training/advantages/value_tracker.py",),
    "collector": tuple(f"training/rollouts/{name}.py" for name in ("collector", "landed", "request", "retry")),
    "parser": ("envs/text/parse.py", "envs/text/near_miss.py"),
}
# Another small code base that newcomers read, nanochat, by this same ruler (docs/results.md): what is wanted of these.
WANTED_TOKENS, WANTED_UNTYPED, WANTED_COMMENTS = 8.7, 8.6, 13.7
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


@dataclass(slots=True)
class Counts:
    """Of some files together."""

    tokens: int = 0
    lines: int = 0  # with any of these tokens
    untyped: int = 0  # tokens that are no part of an annotation
    untyped_lines: int = 0
    names: list[int] = field(default_factory=list)  # the length of each
    comments: int = 0
    filled: int = 0  # lines that are not empty

    def add(self, text: str) -> None:
        """One more file."""
        tree = ast.parse(text)
        docstrings = {line for node in ast.walk(tree) for line in _docstring(node)}
        types = [_span(node) for node in _annotations(tree)]
        rows, untyped_rows = set[int](), set[int]()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            row = token.start[0]
            if token.type in LAYOUT or row in docstrings:
                continue
            self.tokens += 1
            rows.add(row)
            if not any(start <= token.start < end for start, end in types):
                self.untyped += 1
                untyped_rows.add(row)
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                self.names.append(len(token.string))
        self.untyped -= len(types)  # the colon or arrow of each
        self.lines += len(rows)
        self.untyped_lines += len(untyped_rows)
        filled = [line.strip() for line in text.splitlines() if line.strip()]
        self.filled += len(filled)
        self.comments += sum(line.startswith("#") for line in filled)


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation


def _span(node: ast.expr) -> tuple[tuple[int, int], tuple[int, int]]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _docstring(node: ast.AST) -> range:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return range(0)


def files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [path for path in sorted(place.rglob("*.py")) if path.stat().st_size]


def show(parts: dict[str, tuple[Path, ...]]) -> None:
    for name, places in parts.items():
        counts = Counts()
        for path in (path for place in places for path in files(place)):
            counts.add(path.read_text(encoding="utf-8"))
        print(
            f"  {name}: {counts.tokens / counts.lines:.1f} tokens a line "
            f"({counts.untyped / counts.untyped_lines:.1f} without types), names of {fmean(counts.names):.1f}, "
            f"{100 * counts.comments / counts.filled:.1f} comment lines of a hundred"
        )


def show_read_first() -> None:
    show({name: tuple(ROOT / place for place in places) for name, places in READ_FIRST.items()})
    print(
        f"  wanted: {WANTED_TOKENS} tokens a line ({WANTED_UNTYPED} without types), "
        f"{WANTED_COMMENTS} comment lines of a hundred (nanochat's)"
    )


if __name__ == "__main__":
    show({folder: (Path(folder),) for folder in sys.argv[1:]}) if sys.argv[1:] else show_read_first()
