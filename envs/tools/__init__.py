"""Tools that a policy may call. A tool is a name, a JSON schema and `async def __call__`.

A component of the registry's kind "tool": a built-in name, an entry point `solostream.tool` or "module:object", whose
keyword arguments are the tool's options; or a factory. What it makes is a tool, or a list of tools. A tool keeps
nothing between episodes: what must last within one lives in the workspace.
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
    "null": type(None),
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
}


def make_tool(source: ToolSource) -> Tool:
    """The one tool that `source` makes. Raises UserError as `make_tools` does, and where it makes several."""
    made = make_tools(source)
    if len(made) != 1:
        raise UserError(f"{source!r} makes {len(made)} tools, and one is wanted")
    return made[0]


def make_tools(source: ToolSource) -> list[Tool]:
    """A tool, or what a source of several makes.

    Raises UserError when there is no such tool, when it refuses its options, and when what comes out is no tool.
    """
    if isinstance(source, str):
        made = registry.make("tool", source)
    elif isinstance(source, Mapping):
        options = dict(source)
        made = registry.make("tool", str(options.pop("tool", "")), options)
    else:
        made = source()
    tools = made if isinstance(made, list) else [made]
    for tool in tools:
        if not isinstance(tool, Tool):
            raise UserError(f"{tool!r} is no tool: it needs name, description, parameters and `async def __call__`")
    return tools


def tools_by_name(sources: Sequence[ToolSource]) -> dict[str, Tool]:
    """Made, under their names. Raises UserError as `make_tools` does, and for two of one name."""
    tools = [tool for source in sources for tool in make_tools(source)]
    made = {tool.name: tool for tool in tools}
    if len(made) < len(tools):
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
        types = _types_of(properties.get(name, {}), "string")
        if isinstance(value, str) and types and "string" not in types:
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
        expected = _types_of(properties[name], None)
        if expected and not any(_is(value, one) for one in expected):
            return f"argument {name!r} must be of type {' or '.join(expected)}"
    return None


def _types_of(schema: Mapping[str, Any], default: str | None) -> list[str]:
    """What `type` allows, one or several; none where it says nothing that is known here."""
    told = schema.get("type", default)
    types = [told] if isinstance(told, str) else list(told) if isinstance(told, list) else []
    return types if all(one in _TYPES for one in types) else []


def _is(value: Any, expected: str) -> bool:
    return isinstance(value, _TYPES[expected]) and (expected == "boolean" or not isinstance(value, bool))
