"""A tool in thirty lines: a name, a description, a JSON schema and `async def __call__`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solostream.envs.workspace import Workspace

METRES = {"mm": 0.001, "cm": 0.01, "m": 1.0, "km": 1000.0, "in": 0.0254, "ft": 0.3048, "mi": 1609.344}


class Convert:
    """Options of the tool are arguments of its factory: `tools=["python", {"tool": "convert", "digits": 3}]`."""

    name = "convert"
    description = f"Convert a length. Units: {', '.join(METRES)}."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "value": {"type": "number"},
            "unit": {"type": "string"},
            "to": {"type": "string"},
        },
        "required": ["value", "unit", "to"],
    }

    def __init__(self, digits: int = 6) -> None:
        self._digits = digits

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> str:
        """`workspace.run(code)` would run Python in the episode's interpreter; this tool needs none."""
        for unit in (arguments["unit"], arguments["to"]):
            if unit not in METRES:
                raise ValueError(f"unknown unit {unit!r}")  # the policy sees this and may try again
        metres = arguments["value"] * METRES[arguments["unit"]]
        return f"{metres / METRES[arguments['to']]:.{self._digits}g} {arguments['to']}"
