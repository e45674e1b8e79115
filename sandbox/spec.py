"""From a name to a sandbox: `open_sandbox("fork")`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from solostream.errors import UserError
from solostream.sandbox.types import Limits, Sandbox

SANDBOXES = {
    "fork": "solostream.sandbox.fork:ForkSandbox",
    "docker": "solostream.sandbox.docker:DockerSandbox",
    "docker-jupyter": "solostream.sandbox.docker:DockerJupyterSandbox",
    "jupyter": "solostream.sandbox.jupyter.sandbox:JupyterSandbox",
}
_URL, _HTTP = ("http://", "https://"), "solostream.sandbox.http:HttpSandbox"
_GROUP = "solostream.sandboxes"
# module that is missing -> the extra that installs it
_EXTRAS = {
    "docker": "docker",
    "jupyter_client": "jupyter",
    "ipykernel": "jupyter",
    "zmq": "jupyter",
    "aiohttp": "server",
}
_LIMITS = tuple(field.name for field in fields(Limits))


def open_sandbox(spec: str, **options: Any) -> Sandbox:
    """Make the sandbox that `spec` names. Cheap: what it needs starts with its first `open()`.

    Args:
        spec: "fork", "docker", "docker-jupyter", "jupyter", a name from an entry point of group `solostream.sandboxes`,
            the URL of a server ("http://127.0.0.1:8080"), or "package.module:factory".
        options: fields of `Limits` are gathered into its `limits`; the rest goes to the factory.

    Raises: UserError for an unknown spec or option, and for a backend whose packages are missing.
    """
    return _make(spec, _load(spec, find(spec)), (spec,) if spec.startswith(_URL) else (), options)


def find(spec: str) -> str:
    """The "module:factory" that `spec` names; nothing is imported. Raises UserError for a name that nothing has."""
    if spec.startswith(_URL):
        return _HTTP
    if spec in SANDBOXES:
        return SANDBOXES[spec]
    plugins = {point.name: point.value for point in entry_points(group=_GROUP)}
    if spec in plugins:
        return plugins[spec]
    if ":" in spec:
        return spec
    known = [*SANDBOXES, *plugins]
    near = get_close_matches(spec, known, 1, 0.5)
    hint = (
        f"did you mean '{near[0]}'?" if near else f"one of {', '.join(known)}, http://host:port, package.module:Factory"
    )
    raise UserError(f"unknown sandbox '{spec}'; {hint}")


def _load(spec: str, place: str) -> Callable[..., Sandbox]:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _EXTRAS:
            install = f"pip install 'solostream[{_EXTRAS[missing]}]'"
            raise UserError(f"sandbox '{spec}' needs the package '{missing}'; {install}") from error
        raise UserError(f"sandbox '{spec}': there is no module '{error.name}'; check its spelling") from error
    except AttributeError as error:
        raise UserError(f"sandbox '{spec}': module '{module}' has no '{name}'") from error


def _make(spec: str, factory: Callable[..., Sandbox], place: tuple[str, ...], options: dict[str, Any]) -> Sandbox:
    limits = {name: options.pop(name) for name in _LIMITS if name in options}
    if limits:
        if "limits" in options:
            raise UserError(f"sandbox '{spec}': give either limits=Limits(...) or {', '.join(limits)}, not both")
        options["limits"] = Limits(**limits)
    parameters = inspect.signature(factory).parameters.values()
    taken = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    unknown = [name for name in options if name not in taken]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        near = get_close_matches(unknown[0], [*taken, *_LIMITS], 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(sorted({*taken, *_LIMITS}))}"
        raise UserError(f"sandbox '{spec}' has no option '{unknown[0]}'; {hint}")
    return factory(*place, **options)
