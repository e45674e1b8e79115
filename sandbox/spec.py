"""From a name to a sandbox: `open_sandbox("fork")`. What a name may be is the registry's business, and a URL's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from solostream import registry
from solostream.errors import UserError
from solostream.sandbox.types import Limits, Sandbox

_URL, _HTTP = ("http://", "https://"), "solostream.sandbox.http:HttpSandbox"
_LIMITS = tuple(field.name for field in fields(Limits))


def open_sandbox(spec: str, **options: Any) -> Sandbox:
    """Make the sandbox that `spec` names. Cheap: what it needs starts with its first `open()`.

    Args:
        spec: "fork", "docker", "docker-jupyter", "jupyter", a name from an entry point of group `solostream.sandbox`,
            the URL of a server ("http://127.0.0.1:8080"), or "package.module:Factory".
        options: fields of `Limits` are gathered into its `limits`; the rest goes to the factory.

    Raises: UserError for an unknown spec or option, and for a backend whose packages are missing.
    """
    place = (spec,) if spec.startswith(_URL) else ()
    return _make(spec, registry.load("sandbox", find(spec)), place, options)


def find(spec: str) -> str:
    """The "module:factory" that `spec` names; nothing is imported. Raises UserError for a name that nothing has."""
    return _HTTP if spec.startswith(_URL) else registry.find("sandbox", spec)


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
        raise UserError(
            f"sandbox '{spec}' has no option '{unknown[0]}'; {registry.near(unknown[0], sorted({*taken, *_LIMITS}))}"
        )
    return factory(*place, **options)
