"""Fold the conversation: memory as an action (Memory-as-Action, arXiv 2510.12635).

The policy says what to remember, and its earlier turns leave its sight: it goes on with the question, the latest turns
that it keeps, and this call, in which the summary stands. The paper's tool names single records to prune; here whole
turns go, the oldest first, so that what stays is the text that the policy saw before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solostream.envs.workspace import Workspace


class Fold:
    """Nothing is executed: the environment reads what the workspace is told, and says it in `Step.keep`."""

    name = "fold"
    description = (
        "Make room: replace your earlier turns and their outputs by a summary. You go on with the question, the "
        "summary and as many of your latest turns as you keep; variables of the interpreter stay."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "summary": {
                "type": "string",
                "description": "all that you will still need: findings, results, what is left",
            },
            "keep": {"type": "integer", "description": "how many of your latest turns stay word for word; default 0"},
        },
        "required": ["summary"],
    }

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> str:
        """Raises ValueError for an empty summary and a negative number of turns."""
        keep = int(arguments.get("keep", 0))
        if keep < 0:
            raise ValueError("keep is 0 or more")
        if not str(arguments["summary"]).strip():
            raise ValueError("the summary is empty: say what you will still need")
        workspace.keep = keep
        turns = "" if not keep else f", your last {'turn' if keep == 1 else f'{keep} turns'} before this one"
        return f"Folded: you now see the question{turns} and your summary."
