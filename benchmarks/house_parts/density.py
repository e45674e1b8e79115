"""How dense the text is of the four parts that a newcomer reads first, by one ruler for any code base.

    python benchmarks/house_parts/density.py [FOLDER ...]

tokens: of Python (no comments, docstrings, line ends) a line that has any. names: mean length of an identifier, each
time that it stands there. comments: lines with nothing but a comment, of a hundred that are not empty.
"""

from __future__ import annotations

import ast
import io
import keyword
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
READ_FIRST = {
    "learner": ("training/learner",),
    "tracker": ("training/advantages/value_tracker.py",),
    "collector": tuple(f"training/rollouts/{name}.py" for name in ("collector", "landed", "request", "retry")),
    "parser": ("envs/text/parse.py", "envs/text/near_miss.py"),
}
# Another small code base that newcomers read, nanochat, by this same ruler (docs/results.md): what is wanted of these.
WANTED_TOKENS, WANTED_COMMENTS = 8.5, 13.1
LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


def measure(paths: Iterable[Path]) -> tuple[float, float, float]:
    """(tokens a line of code, characters a name, comment lines of a hundred)."""
    tokens, names, code, comments, lines = 0, list[int](), 0, 0, 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        docstrings = {line for node in ast.walk(ast.parse(text)) for line in _docstring(node)}
        rows = set[int]()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in LAYOUT or token.start[0] in docstrings:
                continue
            tokens += 1
            rows.add(token.start[0])
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                names.append(len(token.string))
        code += len(rows)
        filled = [line.strip() for line in text.splitlines() if line.strip()]
        lines += len(filled)
        comments += sum(line.startswith("#") for line in filled)
    return tokens / code, sum(names) / len(names), 100 * comments / lines


def _docstring(node: ast.AST) -> range:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return range(0)


def files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [path for path in sorted(place.rglob("*.py")) if path.stat().st_size]


def show(parts: dict[str, tuple[Path, ...]]) -> None:
    for name, places in parts.items():
        tokens, names, comments = measure(path for place in places for path in files(place))
        print(f"  {name}: {tokens:.1f} tokens a line, names of {names:.1f}, {comments:.1f} comment lines of a hundred")


def show_read_first() -> None:
    show({name: tuple(ROOT / place for place in places) for name, places in READ_FIRST.items()})
    print(f"  wanted: {WANTED_TOKENS} tokens a line, {WANTED_COMMENTS} comment lines of a hundred (nanochat's)")


if __name__ == "__main__":
    show({folder: (Path(folder),) for folder in sys.argv[1:]}) if sys.argv[1:] else show_read_first()
