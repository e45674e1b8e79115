"""Engines by name: the one way to open one, for training and for whatever is written on the command line.

An engine is a component (`solostream.registry`): a function, plain or async, that returns an `Engine`. It may ask for

    model         what stands behind its name: a folder or id, an address, a function
    module        training only: a function that makes a model of the policy's shape, where no folder has one
    tokenizer     a name, or one that is loaded; None for the model's own
    slots, max_len, seed, dtype, reproducible     concurrent episodes, tokens of a ledger, ...

and has options of its own, in `[engine.NAME]`. An engine with an attribute `tokenizer` brings its own; one with
`trainable = False` returns no tokens and logprobs that a policy could learn from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from solostream import registry
from solostream.agent.engine import Engine
from solostream.agent.engines.pretrained import FORMS, tokenizer_of
from solostream.errors import UserError


async def open_engine(
    spec: str,
    *,
    tokenizer: str | None = None,
    slots: int = 256,
    max_len: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    reproducible: bool = False,
    options: Mapping[str, Any] | None = None,
    api_key_env: str | None = None,
    check: Callable[[Any], object] | None = None,
) -> tuple[Engine, Any]:
    """The engine and the tokenizer that `spec` names; see `FORMS`. Load the model, connect to the server.

    tokenizer: a path or id where it differs from the model's (needed for a server whose model is not on this machine).
    slots: concurrent episodes. max_len: tokens of a ledger. dtype: "auto", "float32" or "bfloat16", of a model loaded
    here. options: the engine's own. api_key_env: the environment variable that holds a server's key, where it is not
    OPENAI_API_KEY. check: called with the tokenizer before hf or vLLM load a model, and raises UserError where the
    caller cannot use it. Raises UserError for a spec, model or server that does not exist, and for what an engine
    refuses.
    """
    name, model = split(spec)
    wanted = {**(options or {}), **({"api_key_env": api_key_env} if api_key_env else {})}
    given = {"model": model, "slots": slots, "max_len": max_len, "seed": seed, "dtype": dtype}
    known = None
    if name == "hf" or not registry.asks("engine", name, "tokenizer"):  # said before the engine takes its time to start
        known = tokenizer_of(model, tokenizer)
        if check is not None and name in ("hf", "vllm"):  # one of your own may bring another tokenizer
            check(known)
    chosen = tokenizer if known is None else known
    engine = await opened(name, wanted, **given, tokenizer=chosen, reproducible=reproducible)
    return engine, getattr(engine, "tokenizer", known)


async def opened(name: str, options: Mapping[str, Any] | None, **given: Any) -> Engine:
    """The engine `name`, whatever its factory is: plain or async. Raises UserError where it is no engine."""
    made = registry.make("engine", name, options, **given)
    engine = await made if inspect.isawaitable(made) else made
    if not isinstance(engine, Engine):
        raise UserError(
            f"engine '{name}' made a {type(engine).__name__}: it needs version, generate, release, load_weights, close"
        )
    return engine


def split(spec: str) -> tuple[str, str]:
    """Of "vllm:PATH" ("vllm", "PATH"), of "PATH" ("hf", "PATH"). Raises UserError for half a spec."""
    if spec.startswith(("http://", "https://")):
        return "server", spec
    name, colon, rest = spec.partition(":")
    if not spec or (colon and name in registry.names("engine") and not rest):
        raise UserError(f"engine {spec!r} is incomplete; give {FORMS}")
    if colon and name in registry.names("engine"):
        return name, rest
    if colon and not Path(spec).exists():  # "module:object", or "module:object:MODEL"
        made, _, model = rest.partition(":")
        return f"{name}:{made}", model
    return "hf", spec
