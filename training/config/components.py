"""Sections that belong to components: `[loss.gspo]` holds the options of the loss `gspo`, and `gspo` checks them.

A section is named as the component is: a built-in name, an entry point, or the quoted "module:object". A section of a
component that the run does not use is checked all the same, so that a sweep over names can keep the options of each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from solostream import registry
from solostream.errors import UserError

Options = dict[str, dict[str, Any]]  # component -> its options
# kind -> the section of the configuration that holds its components'
SECTIONS = {
    "data": "data",
    "advantage": "algorithm",
    "loss": "loss",
    "engine": "engine",
    "sampler": "sampler",
    "rollout": "rollout",
    "tracker": "tracker",
    "metric": "metric",
    "callback": "callback",
}


def check(kind: str, sections: Options) -> Options:
    """Raises UserError for a section that no component has, and for what the component refuses."""
    for spec, options in sections.items():
        try:
            registry.find(kind, spec)
        except UserError as error:
            raise UserError(f"[{SECTIONS[kind]}.{spec}]: {error}") from None
        registry.check(kind, spec, options)
        if kind == "loss":  # a plain value: made here, so that what it refuses is said before anything begins
            registry.make(kind, spec, options)
    return sections


def options_of(kind: str) -> Any:
    """The type of a field that holds the sections of one kind."""
    return Annotated[Options, AfterValidator(partial(check, kind))]


def beside_keys(kind: str, model: BaseModel) -> Options:
    """The sections of one kind that stand beside the keys of `model`. Raises UserError for a key that is neither."""
    title, own, sections = SECTIONS[kind], type(model).model_fields, dict(model.model_extra or {})
    inside = {
        key: f"{title}.{name}.{key}"
        for name in own
        if isinstance(section := getattr(model, name), BaseModel)
        for key in type(section).model_fields
    }
    for name, value in sections.items():
        if name in registry.names(kind) and not isinstance(value, dict):
            raise UserError(f"[{title}.{name}] is a section: it has the options of '{name}', and no value itself")
        if not isinstance(value, dict):
            close = inside.get(name) or owner(name, getattr(model, "components", ()))
            hint = f"did you mean '{close}'?" if close else registry.near(name, own)
            raise UserError(f"unknown key '{title}.{name}'; {hint}")
        if name not in registry.names(kind) and ":" not in name:
            raise UserError(f"unknown section [{title}.{name}]; {registry.near(name, [*own, *registry.names(kind)])}")
    return check(kind, sections)


def owner(option: str, used: Collection[str] = ()) -> str | None:
    """Where an option of that name belongs: "algorithm.aspo.delta". None where no built-in component has it.

    used: the components of the run, which come first where several have it.
    """
    for kind, section in SECTIONS.items():
        for spec in sorted(registry.BUILT_IN[kind], key=lambda spec: spec not in used):
            try:
                if option in registry.defaults(kind, spec):
                    return f"{section}.{spec}.{option}"
            except UserError:  # a package that is not installed
                continue
    return None


def complete(kind: str, sections: Mapping[str, Any], used: Iterable[str]) -> Options:
    """`sections`, with the defaults written out for the components that are used and have options."""
    found = {spec: {**registry.defaults(kind, spec), **sections.get(spec, {})} for spec in used}
    return {**sections, **{spec: options for spec, options in found.items() if options}}
