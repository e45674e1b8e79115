"""`gymnasium.make` for whoever names an environment and its settings in a file or on a command line."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

import solostream.envs  # noqa: F401 (registers solostream/*)
from solostream.errors import UserError

LONGEST = 300  # characters of another's error message: gymnasium's hold the repr of every setting, all tasks included


def specification(env_id: str) -> EnvSpec:
    """Of "namespace/Name-v0" or "module:namespace/Name-v0"; the module is imported. Raises UserError."""
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except (ImportError, gymnasium.error.Error) as error:
        known = ", ".join(name for name in gymnasium.registry if name.startswith("solostream/"))
        raise UserError(f"no environment {env_id!r} ({_short(error)}); built in: {known}") from None


def make(env_id: str, settings: Mapping[str, Any]) -> Any:
    """The environment without gymnasium's wrappers. Raises UserError: an unknown id, or a setting that it lacks."""
    spec = specification(env_id)
    factory = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    taken = inspect.signature(factory).parameters if factory else {}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        if "tasks" not in taken:
            raise UserError(f"{env_id} is no environment of ours: it takes no tasks; one is: solostream/Math-v0")
        for name in settings:
            if name not in taken:
                near = get_close_matches(name, taken, 1, 0.5)
                hint = f"did you mean '{near[0]}'? " if near else ""
                raise UserError(f"{env_id} has no option '{name}'; {hint}there are: {', '.join(taken)}")
    try:
        return gymnasium.make(spec, disable_env_checker=True, **settings).unwrapped
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"{env_id} does not take these settings: {_short(error)}") from None


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
