"""Questions that one search does not answer: facts of a class of Python's library that another is described by.

Of the kind "data": `python-docs:all`, or some of its kinds. The pages are `envs.data.python_docs`, which the tool
`search` reads with corpus = "python-docs": the first hop finds a page by what it says, the next ones by the names that
stand there.
"""

from __future__ import annotations

import platform
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

from solostream.envs.data.generators import Side
from solostream.envs.data.generators.sides import drawn, kinds_of
from solostream.envs.data.python_docs import Page, pages
from solostream.envs.types import Task

Fact = tuple[str, str]  # a question, its answer
_GUESSED = ("None", "True", "False", "0", "1", "()", "''")  # as defaults


class PythonDocs:
    """Kinds: `argument` (one hop), `method`, `default`, `base` (two hops), `far` (three)."""

    def __init__(self, what: str = "all", seed: int = 0) -> None:
        """Raises UserError for an unknown kind, and where the library's sources are not installed."""
        self._kinds = {kind: _drawn_from(kind) for kind in kinds_of(what, _KINDS, "python-docs")}
        self._seed = seed

    def tasks(self, side: Side, n: int) -> list[Task]:
        """`n` problems, the same each time. Raises UserError where there are not as many."""
        return drawn(self._kinds, side, n, self._seed, "python-docs")


def _drawn_from(kind: str) -> Callable[[random.Random], Task]:
    facts = _facts(kind)
    return lambda rng: _task(*rng.choice(facts))


def _task(question: str, answer: str) -> Task:
    version = ".".join(platform.python_version_tuple()[:2])
    told = f"About the standard library of Python {version}, whose documentation you can search. {question}"
    others = {answer.strip("'\""), answer.rpartition(".")[2]} - {answer}
    return Task("", told, answer, meta={"answers": sorted(others)} if others else {})


@cache
def _facts(kind: str) -> tuple[Fact, ...]:
    return tuple(_KINDS[kind]())


@cache
def _found_by_summary() -> dict[str, Page]:
    """The pages that a first sentence of four words or more names among all."""
    count = Counter(page.summary for page in pages())
    return {page.name: page for page in pages() if count[page.summary] == 1 and len(page.summary.split()) >= 4}


@cache
def _base_of() -> dict[str, Page]:
    """Of each class the one class that it inherits from, where that has a page, and no other a page of that name."""
    classes: dict[str, list[Page]] = {}
    for page in pages():
        if page.signature.startswith("class "):
            classes.setdefault(page.name.rpartition(".")[2], []).append(page)
    found = {}
    for page in pages():
        named = [classes.get(base.rpartition(".")[2], []) for base in page.bases]
        if len(named) == 1 and len(named[0]) == 1 and named[0][0] is not page:
            found[page.name] = named[0][0]
    return found


def _classes() -> Iterator[tuple[str, Page]]:
    """(how a class is described, the class that it inherits from)."""
    for name, base in _base_of().items():
        if name in _found_by_summary():
            yield f"A class is documented as “{_found_by_summary()[name].summary}”.", base


def _arguments() -> Iterator[Fact]:
    for page in _found_by_summary().values():
        if not page.signature.startswith(("class ", "module ")):
            for argument, default in page.arguments:
                if default not in (None, *_GUESSED):
                    yield (
                        f"A function is documented as “{page.summary}”. What does its argument {argument} default to?",
                        str(default),
                    )


def _methods() -> Iterator[Fact]:
    for described, base in _classes():
        yield from _method_of(f"{described} Of the class that it inherits from", base)


def _method_of(whose: str, page: Page) -> Iterator[Fact]:
    said = Counter(text for _, text in page.methods)
    for signature, text in page.methods:
        if said[text] == 1 and len(text.split()) >= 3:
            yield f"{whose}: which method is documented as “{text}”?", signature.partition("(")[0]


def _defaults() -> Iterator[Fact]:
    for described, base in _classes():
        for argument, default in base.arguments:
            if default not in (None, *_GUESSED):
                yield (
                    f"{described} The constructor of the class that it inherits from has an argument {argument}. What "
                    "is its default?",
                    str(default),
                )


def _bases() -> Iterator[Fact]:
    for described, base in _classes():
        if len(base.bases) == 1 and base.bases[0] != "object":
            yield f"{described} Which class does the class inherit from that it inherits from?", base.bases[0]


def _far() -> Iterator[Fact]:
    for described, base in _classes():
        if base.name in _base_of():
            whose = f"{described} It inherits from a class that inherits from a third. Of that third class"
            yield from _method_of(whose, _base_of()[base.name])


_KINDS: dict[str, Callable[[], Iterator[Fact]]] = {
    "argument": _arguments, "method": _methods, "default": _defaults, "base": _bases, "far": _far,
}  # fmt: skip
