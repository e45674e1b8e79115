"""The Python interpreter as a tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solostream.envs.workspace import Workspace
from solostream.sandbox.types import Execution


class PythonTool:
    """`stateful`: variables stay from call to call within an episode; else each call starts a fresh interpreter."""

    name = "python"
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python source code"}},
        "required": ["code"],
    }

    def __init__(self, stateful: bool = True) -> None:
        self._stateful = stateful
        state = "Variables stay between calls." if stateful else "Each call starts afresh."
        self.description = f"Run Python code and see what it prints and the value of its last expression. {state}"

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> Execution:
        """Run arguments["code"]: in the episode's session, or in a fresh one where the tool keeps no state."""
        code = str(arguments["code"])
        return await (workspace.run(code) if self._stateful else workspace.run_fresh(code))
