"""Spec strings for engines, as they stand on the command line and in configurations."""

from __future__ import annotations

import importlib
from typing import Any

from solostream.agent.engine import Engine
from solostream.agent.engines.pretrained import FORMS, load_tokenizer, tokenizer_of
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
    api_key_env: str | None = None,
) -> tuple[Engine, Any]:
    """The engine and the tokenizer that `spec` names; see `FORMS`. Load the model, connect to the server.

    tokenizer: a path or id where it differs from the model's (needed for a server whose model is not on this machine).
    slots: concurrent episodes. max_len: tokens of a ledger. dtype: "auto", "float32" or "bfloat16", of a model loaded
    here. api_key_env: the environment variable that holds a server's key, where it is not OPENAI_API_KEY. Raises
    UserError for a spec, model or server that does not exist, and for what an engine refuses.
    """
    kind, colon, rest = spec.partition(":")
    if not spec or (colon and kind in ("vllm", "scripted", "chat") and not rest):
        raise UserError(f"engine {spec!r} is incomplete; give {FORMS}")
    if kind == "scripted":
        from solostream.agent.engines.scripted import ScriptedEngine

        script = ScriptedEngine(_function(rest), load_tokenizer(tokenizer) if tokenizer else None)
        return script, script.tokenizer
    if kind == "chat":
        from solostream.agent.engines.chat_endpoint import ChatEndpoint

        endpoint = ChatEndpoint(rest, key=api_key_env)
        return endpoint, endpoint.tokenizer
    if kind in ("http", "https"):
        from solostream.agent.engines.server import ServerEngine

        server = await ServerEngine.connect(spec.split(","), tokenizer, max_len=max_len, api_key_env=api_key_env)
        return server, server.tokenizer
    if kind == "vllm":
        from solostream.agent.engines.vllm import VllmEngine

        known = tokenizer_of(rest, tokenizer)
        return await VllmEngine.open(rest, slots=slots, max_len=max_len, seed=seed, dtype=dtype), known
    from solostream.agent.engines.hf import HFEngine, load_model

    known = tokenizer_of(spec, tokenizer)
    model = load_model(spec, dtype)
    return HFEngine(model, known, slots=slots, max_len=max_len, seed=seed, reproducible=reproducible), known


def _function(spec: str) -> Any:
    name, _, function = spec.partition(":")
    try:
        return getattr(importlib.import_module(name), function or "policy")
    except (ImportError, AttributeError) as error:
        raise UserError(f"no policy at {spec!r}: {error}; write scripted:MODULE:FUNCTION") from None
