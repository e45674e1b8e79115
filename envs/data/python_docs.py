"""The documentation strings of Python's standard library, as pages: a real corpus that every machine has.

Read from the sources that are installed (they are parsed, nothing is imported), so the pages are those of the Python
that runs. A module, a class and a function have a page each, a method stands on the page of its class.
(PSF licence, https://docs.python.org/3/license.html.)
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from solostream.errors import UserError

# Written in Python, documented, of general use; those that a minimal installation lacks are passed over.
MODULES = (
    "argparse", "ast", "asyncio", "base64", "bisect", "bdb", "calendar", "cmd", "code", "codecs", "collections",
    "concurrent", "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib",
    "doctest", "email", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "getpass",
    "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "html", "http", "imaplib", "importlib",
    "inspect", "io", "ipaddress", "json", "linecache", "locale", "logging", "lzma", "mailbox", "mimetypes",
    "multiprocessing", "netrc", "ntpath", "numbers", "os", "pathlib", "pdb", "pickle", "pickletools", "platform",
    "plistlib", "poplib", "posixpath", "pprint", "pstats", "queue", "quopri", "random", "reprlib", "runpy", "sched",
    "secrets", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "sqlite3", "ssl",
    "stat", "statistics", "string", "subprocess", "sysconfig", "tarfile", "tempfile", "textwrap", "threading",
    "timeit", "tokenize", "trace", "traceback", "types", "typing", "unittest", "urllib", "uuid", "warnings", "wave",
    "weakref", "webbrowser", "wsgiref", "xml", "xmlrpc", "zipfile", "zoneinfo",
)  # fmt: skip


PASSAGE = 1200


@dataclass(frozen=True, slots=True)
class Page:
    """Of a class or a function; `name` is dotted. arguments: name -> default, as written, or None; of a class its
    constructor's.
    """

    name: str
    signature: str
    doc: str
    bases: tuple[str, ...] = ()
    arguments: tuple[tuple[str, str | None], ...] = ()
    methods: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """What a reader sees."""
        methods = "\n".join(f"- {signature}: {said}" if said else f"- {signature}" for signature, said in self.methods)
        return "\n".join(part for part in (self.signature, self.doc, methods) if part)

    def passages(self) -> Iterator[str]:
        """Its text in parts of about `PASSAGE` characters, whole lines, each behind the signature."""
        part: list[str] = []
        for line in self.text.splitlines():
            if part and sum(map(len, part)) + len(line) > PASSAGE:
                yield "\n".join(part)
                part = [f"{self.signature} (continued)"]
            part.append(line)
        yield "\n".join(part)

    @property
    def summary(self) -> str:
        """The first sentence of its documentation, on one line."""
        first = " ".join(self.doc.split("\n\n")[0].split())
        end = first.find(". ")
        return (first if end < 0 else first[: end + 1]).rstrip(".")


@cache
def pages() -> tuple[Page, ...]:
    """All of them, in the order of their names. Raises UserError where the sources are not installed."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Page] = {}
    for top in MODULES:
        package = folder / top
        files = sorted(package.rglob("*.py")) if package.is_dir() else [folder / f"{top}.py"]
        for path in files:
            parts = path.relative_to(folder).with_suffix("").parts
            if path.is_file() and not any(part in ("test", "tests", "__main__") for part in parts):
                found |= {page.name: page for page in _of_module(path, ".".join(parts).removesuffix(".__init__"))}
    if not found:
        raise UserError(f"no sources of the standard library in {folder}: the corpus python-docs is made of them")
    return tuple(found[name] for name in sorted(found))


def _of_module(path: Path, module: str) -> Iterator[Page]:
    tree = ast.parse(path.read_bytes())
    if doc := ast.get_docstring(tree):
        yield Page(module, f"module {module}", doc)
    for node in tree.body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(node)):
            signature = f"{module}.{node.name}({ast.unparse(node.args)})"
            yield Page(f"{module}.{node.name}", signature, doc, arguments=_arguments(node.args, 0))
        elif isinstance(node, ast.ClassDef) and (doc := ast.get_docstring(node)):
            yield _of_class(node, module, doc)


def _of_class(node: ast.ClassDef, module: str, doc: str) -> Page:
    bases = tuple(ast.unparse(base) for base in node.bases)
    methods: list[tuple[str, str]] = []
    arguments: tuple[tuple[str, str | None], ...] = ()
    for one in node.body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            if one.name == "__init__":
                arguments = _arguments(one.args, 1)
            if not one.name.startswith("_") or one.name == "__init__":
                said = (ast.get_docstring(one) or "").split("\n")[0].strip()
                methods.append((f"{one.name}({ast.unparse(one.args)})", said))
    signature = f"class {module}.{node.name}({', '.join(bases)})"
    return Page(f"{module}.{node.name}", signature, doc, bases, arguments, tuple(methods))


def _arguments(args: ast.arguments, skip: int) -> tuple[tuple[str, str | None], ...]:
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + [ast.unparse(default) for default in args.defaults]
    named = [(arg.arg, default) for arg, default in zip(positional, defaults, strict=True)][skip:]
    only = [
        (a.arg, None if d is None else ast.unparse(d)) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    return (*named, *only)
