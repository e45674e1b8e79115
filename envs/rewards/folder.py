"""`folder`: whether the files that a task wants are there, byte for byte, when the episode ends.

`meta["wanted"]`: path -> text, or None for what must be gone; paths as in `meta["files"]`. They are read in the
episode's own interpreter, which the policy may have tampered with, and compared outside it. A task without them is
graded by its answer, as by `correct`.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from solostream.envs.rewards.builtin import correct
from solostream.envs.rewards.episode import Episode, Score

_READ = """import json as _json, os as _os
def _text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return "a folder" if _os.path.isdir(path) else None
_json.dumps([_text(path) for path in _json.loads({paths!r})])
"""


async def folder(episode: Episode, workspace: Any) -> Score:
    """1 when every wanted file is as it should be, else 0. Raises SandboxError."""
    wanted = episode.task.meta.get("wanted")
    if not wanted:
        return await correct(episode)
    done = await workspace.run(_READ.format(paths=json.dumps(list(wanted))))
    try:
        found = json.loads(ast.literal_eval(done.result or ""))
        wrong = [path for path, text in zip(wanted, found, strict=True) if text != wanted[path]]
    except (ValueError, SyntaxError, TypeError):  # the policy broke its interpreter
        return Score(0.0, "the folder cannot be read")
    return Score(float(not wrong), f"not as wanted: {', '.join(wrong)}" if wrong else "the folder is as wanted")
