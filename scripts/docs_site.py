"""mkdocs hooks: the reference pages that follow from the code, and links out of docs/ that the repository has.

`reference/commands.md` is what `--help` prints, `configuration.md` every key with its default and the comment beside
it, `components.md` every built-in component with its options.
"""

from __future__ import annotations

import ast
import contextlib
import html
import inspect
import io
import json
import os
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from solostream import registry
from solostream.cli import main as cli
from solostream.training.config.components import SECTIONS
from solostream.training.config.models import Config

ROOT = Path(__file__).parents[1]


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Key -> the comment beside it, or in the lines above it."""
    source = textwrap.dedent(inspect.getsource(model))
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        beside = comments.get(node.end_lineno or node.lineno, "")
        above, line = "", node.lineno - 1
        while line in comments and lines[line - 1].lstrip().startswith("#"):
            above, line = f"{comments[line]} {above}".strip(), line - 1
        if node.target.id in model.model_fields:
            said = " ".join(filter(None, (above, beside)))
            found[node.target.id] = said.removeprefix("... ").replace(" ...", " …")
    return found


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Path):
        value = value.name
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False, default=str)
    return f"`{text if len(text) <= 80 else text[:78] + ' …'}`"


def _type(annotation: Any) -> str:
    """As a reader of TOML wants it: no wrappers, no bounds."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(one) for one in inside if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(one)}`" for one in inside)
    if origin is tuple:
        if inside[-1] is Ellipsis:
            return f"list of {_type(inside[0])}"
        return f"[{', '.join(map(_type, inside))}]"
    if origin is dict:
        return "table"
    return {str: "text", bool: "true or false", int: "integer", float: "number"}.get(annotation, str(annotation))


def keys(model: type[BaseModel], path: str) -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, meaning) of every field that is no section."""
    said = meanings(model)
    for name, field in model.model_fields.items():
        if not _is_section(field.annotation):
            default = field.get_default(call_default_factory=True)
            yield f"{path}.{name}", _type(field.annotation), _value(default), said.get(name, "")


def sections(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, model) of every section, outer ones first."""
    for name, field in model.model_fields.items():
        if inner := _is_section(field.annotation):
            yield f"{path}{name}", inner
            yield from sections(inner, f"{path}{name}.")


def _is_section(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if inspect.isclass(c) and issubclass(c, BaseModel)), None)


def configuration() -> str:
    page = [
        "# Configuration",
        "Every key of a TOML file, and of `--set section.key=value`. Another key is an error with the nearest one.",
        "Sections of components (`[loss.gspo]`, `[engine.vllm]`, …) are in [components](components.md).",
    ]
    shown: dict[type[BaseModel], str] = {}
    for path, model in sections():
        page.append(f"## `[{path}]`")
        page.append(inspect.cleandoc(model.__doc__ or ""))
        if model in shown:
            page.append(f"The keys are those of `[{shown[model]}]`.")
            continue
        shown[model] = path
        rows = [f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in keys(model, path)]
        page.append("\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(page) + "\n"


def commands() -> str:
    page = ["# Commands", "What `solostream COMMAND --help` prints."]
    for name in cli.COMMANDS:
        page.append(f"## solostream {name}\n\n```text\n{help_of(name)}\n```")
    return "\n\n".join(page) + "\n"


def help_of(name: str) -> str:
    """What the command prints when it is asked for help, 100 columns wide, without colours."""
    os.environ.update({"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*name.split(), "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def components() -> str:
    page = [
        "# Components",
        "What can be named in a configuration or on the command line, or [come from outside](../extending.md).",
    ]
    for kind, known in registry.BUILT_IN.items():
        if not known:
            continue
        where = f" Options: `[{SECTIONS[kind]}.NAME]`." if kind in SECTIONS else ""
        page.append(f"## {kind}\n\nExtra names: entry points `solostream.{kind}`, or `module:object`.{where}")
        rows = ["| name | what | options |", "|---|---|---|"]
        for name in known:
            loaded = registry.load(kind, name)
            rows.append(f"| `{name}` | {_first_sentence(loaded)} | {_options(kind, name)} |")
        page.append("\n".join(rows))
    return "\n\n".join(page) + "\n"


def _first_sentence(component: Any) -> str:
    said = inspect.getdoc(component) or ""
    if inspect.isclass(component) and said.startswith(component.__name__ + "("):  # what a dataclass says of itself
        said = ""
    said = said or (inspect.getdoc(inspect.getmodule(component)) or "")
    first = re.split(r"(?<=\.)\s", said.partition("\n\n")[0].replace("\n", " "), maxsplit=1)[0]
    return html.escape(first, quote=False).replace("|", "\\|")


def _options(kind: str, name: str) -> str:
    found = registry.defaults(kind, name)
    return ", ".join(f"`{option} = {_value(value).strip('`')}`" for option, value in found.items()).replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/configuration.md": configuration,
    "reference/components.md": components,
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that follow from the code."""
    from mkdocs.structure.files import File

    for path, write in PAGES.items():
        files.append(File.generated(config, path, content=write()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A link to a file of the repository outside docs/ becomes a link to the repository."""

    def outside(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        place = (ROOT / "docs" / page.file.src_uri).parent / target
        place = Path(os.path.normpath(place))
        if not place.exists() or place.is_relative_to(ROOT / "docs"):
            return match[0]
        return f"]({config.repo_url}/blob/main/{place.relative_to(ROOT)}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\((\.\./[^)\s]+)\)", outside, markdown)
