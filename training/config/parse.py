"""From TOML and `--set` to a `Config`: reading, assigning, sweeping, and saying in one line what is wrong.

`[sweep]` maps dotted keys to lists; `expand` turns one file into one configuration a combination.
"""

from __future__ import annotations

import copy
import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

import solostream
from solostream.errors import UserError
from solostream.training.config import components
from solostream.training.config.models import Config

RECIPES = Path(solostream.__file__).parent / "recipes"


def recipes() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {name_of(path): path for path in sorted(RECIPES.glob("*.toml"))}


def name_of(path: Path) -> str:
    """What a run of this file or recipe is called: a model's name may have points in it, of which only .toml goes."""
    return path.name.removesuffix(".toml")


def read(path: Path) -> dict[str, Any]:
    """The TOML file, the recipe of that name or the configuration of that run folder, as a tree. Raises UserError."""
    if (path / "config.toml").is_file():
        path = path / "config.toml"
    elif not path.exists():
        path = recipes().get(str(path), path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        here = {str(p): None for p in path.parent.glob("*.toml")} | dict.fromkeys(recipes())
        near = get_close_matches(str(path), here, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"give a file, or a recipe: {', '.join(recipes())}"
        raise UserError(f"no configuration {path}; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def assign(tree: Mapping[str, Any], settings: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with each `dotted.key=value` put in: TOML, a bare word is a string. Raises UserError.

    A mapping holds values: {"dotted.key": value}.
    """
    result = dict(copy.deepcopy(tree))
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            _put(result, key, str(value) if isinstance(value, Path) else value)
        return result
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set takes key=value, for example learner.lr=1e-4, not '{setting}'")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        _put(result, key.strip(), value)
    return result


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """`key` is dotted, as in TOML: `loss."package.module:Mine".scale` has three parts."""
    *sections, last = [part.strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", key)]
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"'{key}': '{section}' is a value, not a section")
    tree[last] = value


def swept(tree: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The dotted keys of `[sweep]` and their values; empty without one. Raises UserError."""
    sweep = tree.get("sweep", {})
    if not isinstance(sweep, Mapping):
        raise UserError(f"'sweep' is a section: write [sweep] and keys like run.seed = [0, 1], not {sweep!r}")
    axes = dict(_leaves(sweep))
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"sweep.{key} must be a non-empty list of values, not {values!r}")
    return axes


def expand(tree: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(suffix, tree) for every combination of `[sweep]`'s lists; without a sweep one, suffix "". Raises UserError."""
    axes = swept(tree)
    plain = {name: section for name, section in tree.items() if name != "sweep"}
    for places in itertools.product(*(range(len(values)) for values in axes.values())):
        made, suffix = copy.deepcopy(plain), ""
        for (key, values), place in zip(axes.items(), places, strict=True):
            _put(made, key, values[place])
            suffix += f"-{key.split('.')[-1]}={_label(values[place], place)}"
        yield suffix, made


def _label(value: Any, place: int) -> str:
    """A part of a folder's name: the value where it is short and plain, else its place in the list."""
    return str(value).replace("/", "_") if isinstance(value, str | int | float) else str(place)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def validate(tree: Mapping[str, Any]) -> Config:
    """Raises UserError: one line a problem would be noise, so the first is named, and how many more there are."""
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        # A misspelt key is also a missing one: name the cause first.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(_explain(problems[0]) + more) from None


def load(path: Path, settings: Iterable[str] = ()) -> Config:
    """`read`, `assign`, `validate` for a file without a sweep."""
    return validate(assign(read(path), settings))


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(problem["loc"][:-1])
        wrong = str(problem["loc"][-1])
        near = _elsewhere(wrong) or get_close_matches(wrong, allowed, 1, 0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{key}'; {hint}allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    if problem["type"] == "literal_error":
        allowed = _choices(problem["loc"])
        near = get_close_matches(str(problem["input"]), allowed, 1, 0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"'{key}' cannot be {problem['input']!r}; {hint}allowed: {', '.join(allowed)}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"'{key}' is a section: write [{key}] and its keys ({', '.join(_keys_at(problem['loc']))})"
    if problem["type"] == "dict_type":
        return f"'{key}' is a section: write [{key}] and its keys"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # a component's own words
        return str(cause)
    reason = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    reason = reason[:1].lower() + reason[1:]
    if isinstance(problem["input"], Mapping):
        return f"'{key}': {reason}" if key else reason
    return f"'{key}' cannot be {problem['input']!r}: {reason}"


def _model_at(loc: Iterable[Any]) -> type[BaseModel]:
    model: type[BaseModel] = Config
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return model


def _keys_at(loc: tuple[Any, ...]) -> list[str]:
    return list(_model_at(loc).model_fields)


def _elsewhere(wrong: str) -> list[str]:
    """Where a key of that name lives when it was put into the wrong section."""
    places = [f"{name}.{wrong}" for name in Config.model_fields if wrong in _keys_at((name,))]
    return places[:1] or [place for place in [components.owner(wrong)] if place]


def _choices(loc: tuple[Any, ...]) -> list[str]:
    names = [part for part in loc if not isinstance(part, int)]
    found: list[str] = []
    stack: list[Any] = [_model_at(names[:-1]).model_fields[names[-1]].annotation]
    while stack:
        annotation = stack.pop()
        if isinstance(annotation, str):
            found.insert(0, annotation)
        else:
            stack.extend(get_args(annotation))
    return found
