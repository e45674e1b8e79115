"""One grammar for everything that can be added: `spec` is a built-in name, an entry point, or "module:object".

A component is whatever its factory returns: a class, a frozen dataclass or a function. The factory's keywords are the
component's options; their annotations are checked, so that each component owns and validates its own section of a
configuration. Keywords that the caller offers by name (`tracker`, `limits`, …) are handed over where a factory asks for
them and are no options. To add one inside: a file, and a line in `BUILT_IN`. From outside: an entry point of the group
`solostream.<kind>`, or "module:object" with nothing registered at all.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from solostream.errors import UserError

# kind -> name -> "module:object". Text, so that nothing is imported before it is asked for.
BUILT_IN: dict[str, dict[str, str]] = {
    "sandbox": {
        "fork": "solostream.sandbox.fork:ForkSandbox",
        "docker": "solostream.sandbox.docker:DockerSandbox",
        "docker-jupyter": "solostream.sandbox.docker:DockerJupyterSandbox",
        "jupyter": "solostream.sandbox.jupyter.sandbox:JupyterSandbox",
    },
    "tool": {
        "python": "solostream.envs.tools.python:PythonTool",
        "calculator": "solostream.envs.tools.calculator:Calculator",
        "search": "solostream.envs.tools.search:Search",
    },
    "reward": {
        "correct": "solostream.envs.rewards.rubric:correct",
        "answered": "solostream.envs.rewards.rubric:answered",
        "well_formed": "solostream.envs.rewards.rubric:well_formed",
        "code_passes": "solostream.envs.rewards.rubric:code_passes",
        "otc": "solostream.envs.rewards.rubric:otc",
    },
    "layout": {  # the first that matches is taken
        "verl": "solostream.envs.data.layouts.verl:Verl",
        "trl": "solostream.envs.data.layouts.trl:Trl",
        "trl-conversational": "solostream.envs.data.layouts.trl:Conversational",
        "messages": "solostream.envs.data.layouts.messages:Messages",
        "reasoning-gym": "solostream.envs.data.layouts.questions:ReasoningGym",
        "gsm8k": "solostream.envs.data.layouts.questions:Gsm8k",
        "question-answer": "solostream.envs.data.layouts.questions:Question",
        "math": "solostream.envs.data.layouts.competition:Math",
    },
}
# module that is missing -> the extra that brings it
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "datasets", "math_verify", "tensorboard", "matplotlib", "peft"), "train"),
    **dict.fromkeys(("aiohttp", "fastapi", "uvicorn", "prometheus_client"), "server"),
    **dict.fromkeys(("jupyter_client", "ipykernel", "zmq"), "jupyter"),
    "docker": "docker",
    "vllm": "vllm",
}


def names(kind: str) -> list[str]:
    """The built-in names and those of entry points."""
    return [*BUILT_IN.get(kind, {}), *_plugins(kind)]


def find(kind: str, spec: str) -> str:
    """The "module:object" that `spec` names; nothing is imported. Raises UserError for a name that nothing has."""
    places = {**_plugins(kind), **BUILT_IN.get(kind, {})}
    if spec in places:
        return places[spec]
    module, colon, name = spec.partition(":")
    if colon and module and name:
        return spec
    near = get_close_matches(spec, places, 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(places)}, or package.module:Object"
    raise UserError(f"unknown {kind} '{spec}'; {hint}")


def load(kind: str, spec: str) -> Any:
    """The object that `spec` names. Raises UserError with what to install, write or correct.

    A module of the current folder is found, too, whatever started this process; installed ones come first.
    """
    module, _, name = find(kind, spec).partition(":")
    _see_current_folder(module)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.partition(".")[0] in EXTRAS:
            install = f"pip install 'solostream[{EXTRAS[missing.partition('.')[0]]}]'"
            raise UserError(f"{kind} '{spec}' needs the package '{missing}'; {install}") from error
        where = f"neither installed nor in {Path.cwd()}: start where its file is, or set PYTHONPATH to its folder"
        raise UserError(f"{kind} '{spec}': there is no module '{missing}'; it is {where}") from error
    except AttributeError:
        near = get_close_matches(name, dir(importlib.import_module(module)), 1, 0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"{kind} '{spec}': module '{module}' has no '{name}'{hint}") from None
    except ImportError as error:
        raise UserError(f"{kind} '{spec}' cannot be imported: {error}") from error
    return found


def make(kind: str, spec: str, options: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """The component: its factory called with `options`, checked, and with those of `given` that it asks for.

    Raises UserError for an option that it does not have and for a value of the wrong type.
    """
    factory = load(kind, spec)
    offered = {name: value for name, value in given.items() if name in _parameters(factory)}
    return factory(**offered, **checked(f"{kind} '{spec}'", factory, options or {}, known=given))


def checked(
    what: str, factory: Callable[..., Any], options: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """`options` as `factory` declares them; names of `known` are no options. Raises UserError, one line."""
    from pydantic import ConfigDict, ValidationError, create_model

    parameters = _parameters(factory)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(options)
    taken = {
        name: p
        for name, p in parameters.items()
        if name not in known and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    for name in options:
        if name not in taken:
            near = get_close_matches(name, taken, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(taken) or 'none'}"
            raise UserError(f"{what} has no option '{name}'; {hint}")
    hints = _hints(factory)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default) for name, p in taken.items()
    }
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        model = create_model("Options", __config__=config, **fields).model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "missing":
            raise UserError(f"{what} needs its option '{key}'") from None
        raise UserError(f"{what}: option '{key}' cannot be {problem['input']!r}: {problem['msg'].lower()}") from None
    return {name: getattr(model, name) for name in options} | {
        name: getattr(model, name) for name, p in taken.items() if p.default is p.empty
    }


def _plugins(kind: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=f"solostream.{kind}")}


def _see_current_folder(module: str) -> None:
    """Put the current folder at the end of the path when only there `module` is found: it can shadow nothing."""
    here, top = str(Path.cwd()), module.partition(".")[0]
    try:
        missing = top not in sys.modules and find_spec(top) is None
    except (ImportError, ValueError):
        return
    if missing and here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    target = factory.__init__ if inspect.isclass(factory) else factory  # type: ignore[misc]
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # an annotation that exists only for the type checker: unchecked
        return {}
