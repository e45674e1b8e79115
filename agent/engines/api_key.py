"""The key of a server: read from an environment variable, never from the command line, where others could see it."""

from __future__ import annotations

import os

from solostream.errors import UserError

VARIABLE = "OPENAI_API_KEY"  # unless another is named
HINT = f"the key is read from the environment variable {VARIABLE}, or from the one that --api-key-env names"


def api_key(variable: str | None = None) -> str | None:
    """What the variable holds; None where none is named and the usual one is not set. Raises UserError."""
    found = os.environ.get(variable or VARIABLE) or None
    if found is None and variable is not None:
        raise UserError(f"the environment variable {variable} is not set: export it, or name another --api-key-env")
    return found
