"""Environments by name, for whoever names one and its settings in a file or on a command line.

A name is an id of Gymnasium ("namespace/Name-v0", or "module:namespace/Name-v0"), an entry point
`solostream.environment`, or "module:object": a class, or a function that returns an environment, wrappers included.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

import solostream.envs  # noqa: F401 (registers solostream/*)
from solostream import registry
from solostream.envs.text_env import TextEnv, TextEnvAdapter
from solostream.errors import UserError

LONGEST = 300  # characters of another's error message: gymnasium's hold the repr of every setting, all tasks included
# what a run gives to an environment that takes it: no option of the environment's own
GIVEN = ("tasks", "tokenizer", "sandbox", "max_turns", "timeout_s", "output_tokens")
_ITS_OWN = (OrderEnforcing, PassiveEnvChecker)  # wrappers that gymnasium.make adds: they change nothing


def specification(env_id: str) -> EnvSpec | None:
    """Of an id of Gymnasium, whose module is imported; None for an environment of the registry. Raises UserError."""
    module, _, name = env_id.rpartition(":")
    if env_id in registry.names("environment") or (module and "/" not in name and "-v" not in name):
        registry.load("environment", env_id)
        return None
    try:
        if module:
            registry.see_current_folder(module)
            importlib.import_module(module)
        return gymnasium.spec(name)
    except (ImportError, gymnasium.error.Error) as error:
        known = ", ".join(name for name in gymnasium.registry if name.startswith("solostream/"))
        raise UserError(f"no environment {env_id!r} ({_short(error)}); built in: {known}") from None


def factory_of(env_id: str) -> Callable[..., Any]:
    """What makes the environment. Raises UserError."""
    spec = specification(env_id)
    found: Any = registry.load("environment", env_id) if spec is None else spec.entry_point
    return load_env_creator(found) if isinstance(found, str) else found


def takes_tasks(env_id: str) -> bool:
    """Whether it is given tasks; the episodes of another are told apart by their seeds. Raises UserError."""
    taken = inspect.signature(factory_of(env_id)).parameters
    return "tasks" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def make(env_id: str, settings: Mapping[str, Any]) -> Any:
    """A `TextEnv`, with the wrappers that belong to it. Raises UserError: an unknown id, or a setting that it lacks."""
    return as_text_env(build(env_id, settings))


def build(env_id: str, settings: Mapping[str, Any]) -> Any:
    """What Gymnasium or the factory makes of it. Raises UserError as `make` does."""
    spec = specification(env_id)
    factory = factory_of(env_id)
    taken = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        for name in settings:
            if name not in taken and name not in GIVEN:
                raise UserError(f"{env_id} has no option '{name}'; {registry.near(name, taken)}")
        settings = {name: value for name, value in settings.items() if name in taken}
    try:
        return factory(**settings) if spec is None else gymnasium.make(spec, disable_env_checker=True, **settings)
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"{env_id} does not take these settings: {_short(error)}") from None


def as_text_env(env: Any) -> TextEnv:
    """`env` itself where it is a `TextEnv`, else adapted. Raises UserError for what is no environment of text."""
    while isinstance(env, _ITS_OWN):
        env = env.env
    if not isinstance(env, gymnasium.Wrapper) and isinstance(env, TextEnv):
        return env
    if not isinstance(env, gymnasium.Env):
        raise UserError(f"a {type(env).__name__} is no environment: it needs gymnasium's or TextEnv's members")
    return TextEnvAdapter(env)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
