"""Tools that a policy may call. A tool is a name, a JSON schema and `async def __call__`.

A component of the registry's kind "tool": a built-in name, an entry point `solostream.tool` or "module:object", whose
keyword arguments are the tool's options; or a factory. A tool keeps nothing between episodes: what must last within one
lives in the workspace.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from solostream import registry
from solostream.envs.workspace import Workspace
from solostream.errors import UserError
from solostream.sandbox.types import Execution


@runtime_checkable
class Tool(Protocol):
    """`parameters` is the JSON schema of the arguments: an object with `properties` and `required`."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> Execution | str:
        """Text is shown as it is. A ValueError becomes an error that the policy sees. Raises SandboxError."""
        ...


ToolSource = str | Mapping[str, Any] | Callable[..., Tool]  # a name, {"tool": name, **options}, a factory
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
}


def make_tool(source: ToolSource) -> Tool:
    """Raises UserError when there is no such tool, when it refuses its options, and when what comes out is no tool."""
    if isinstance(source, str):
        tool = registry.make("tool", source)
    elif isinstance(source, Mapping):
        options = dict(source)
        tool = registry.make("tool", str(options.pop("tool", "")), options)
    else:
        tool = source()
    if not isinstance(tool, Tool):
        raise UserError(f"{tool!r} is no tool: it needs name, description, parameters and `async def __call__`")
    return tool


def tools_by_name(sources: Sequence[ToolSource]) -> dict[str, Tool]:
    """Made, under their names. Raises UserError as `make_tool` does, and for two of one name."""
    made = {tool.name: tool for tool in map(make_tool, sources)}
    if len(made) < len(sources):
        raise UserError(f"two tools have one name, among: {', '.join(made)}")
    return made


def json_schema(tool: Tool) -> dict[str, Any]:
    """The function schema that chat templates and OpenAI's API take."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def typed(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with text read as JSON where the schema wants no text: some syntaxes write every value as text."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    read = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, str) and properties.get(name, {}).get("type", "string") in _TYPES.keys() - {"string"}:
            try:
                read[name] = json.loads(value)
            except ValueError:
                continue  # `wrong_arguments` says what is wrong with it
    return read


def wrong_arguments(tool: Tool, arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with them, in words for the policy, or None. Checks presence, names and top-level types."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    required: Sequence[str] = tool.parameters.get("required", ())
    for name in required:
        if name not in arguments:
            return f"argument {name!r} is missing"
    for name, value in arguments.items():
        if name not in properties:
            return f"unknown argument {name!r}; {tool.name} takes: {', '.join(properties)}"
        expected = properties[name].get("type")
        if expected in _TYPES and (
            not isinstance(value, _TYPES[expected]) or (expected != "boolean" and value is True)
        ):
            return f"argument {name!r} must be of type {expected}"
    return None
