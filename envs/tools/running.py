"""One call of a tool: what is executed, and what the policy reads. The policy's mistakes are outputs, not errors."""

from __future__ import annotations

from collections.abc import Mapping

from solostream.envs.space import SURROGATE
from solostream.envs.text.observation import observe
from solostream.envs.tools import Tool, typed, wrong_arguments
from solostream.envs.types import NO_SUCH_TOOL, UNREADABLE, ToolCall
from solostream.envs.workspace import Workspace
from solostream.errors import UserError
from solostream.sandbox.types import CodeError, Execution


async def run_call(
    call: ToolCall, tools: Mapping[str, Tool], workspace: Workspace, *, tracebacks: bool = True
) -> tuple[Execution | None, str]:
    """(what was executed, what the policy sees, of any length). None: nothing was, and the text says why.

    tracebacks: see `observe`. Raises SandboxError, and UserError for what the user of the environment got wrong.
    """
    if call.status != "ok":
        return None, f"{UNREADABLE} {call.arguments['error']}"
    tool = tools.get(call.name)
    if tool is None:
        return None, f"{NO_SUCH_TOOL} there is: {', '.join(tools) or 'none for this problem'}"
    arguments = typed(tool, call.arguments)
    if wrong := wrong_arguments(tool, arguments):
        return None, f"Error: {wrong}"
    try:
        result = await tool(arguments, workspace)
    except UserError:
        raise  # no Docker daemon, a misspelt sandbox: its user's mistake, not the policy's
    except ValueError as error:
        result = Execution(status="error", error=CodeError(type(error).__name__, str(error), ""))
    execution = Execution(stdout=result) if isinstance(result, str) else result
    return execution, SURROGATE.sub("\ufffd", observe(execution, tracebacks=tracebacks))
