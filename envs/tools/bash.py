"""A shell in the sandbox: bash, run by the episode's interpreter, with what its commands did (as ShIOEnv has it).

Variables, functions, options and the working folder stay from call to call: bash writes them down when it ends and the
next one reads them, so that they are part of the interpreter's state, which can be forked and rebuilt like any other.
(A command that sets a trap on EXIT of its own keeps none of its state.) Background processes go on.

The policy reads what the command printed, its exit status where that is not 0, and which files came, changed and went;
`Execution.display` holds the same as JSON.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from solostream.envs.workspace import Workspace
from solostream.sandbox.types import CodeError, Execution

FOLDER = "work"  # below the interpreter's own folder, where other things may lie
NAMES_SHOWN = 8


class Bash:
    """Commands of one episode run in one shell, in a folder of its own below the interpreter's."""

    name = "bash"
    description = (
        "Run a bash command and see what it prints, its exit status and which files it changed. Variables, functions "
        "and the working folder stay between calls. There is no input, and nobody answers a prompt."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"command": {"type": "string", "description": "for example: grep -c ERROR logs/*.log | sort"}},
        "required": ["command"],
    }

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> Execution:
        """Run arguments["command"]; a status other than 0 is an error. Raises SandboxError."""
        done = await workspace.run(f"{_INSIDE}_bash_run({str(arguments['command'])!r}, {FOLDER!r})")
        if done.status == "timeout":
            return replace(done, error=CodeError("TimeoutError", "the command ran too long and was stopped", ""))
        told = _told(done.result)
        if told is None:  # no bash in this sandbox, or the interpreter itself broke
            return done
        lines = [f"{name}: {_listed(told[name])}" for name in ("created", "changed", "deleted") if told.get(name)]
        failed = told.get("status") or 0
        return replace(
            done,
            result="\n".join(lines) or None,
            status="error" if failed else "ok",
            error=CodeError("exit status", str(failed), "") if failed else None,
            display=({"application/json": json.dumps(told)},),
        )


def _told(result: str | None) -> dict[str, Any] | None:
    """What the program in the sandbox returned."""
    try:
        told = json.loads(ast.literal_eval(result or ""))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


# These two run in the sandbox, as source. What they return is what the policy may have meddled with: nobody trusts it.
def _bash_files(folder: str) -> dict[str, object]:
    """Every file and folder (with a slash) below `folder` and a mark that changes when it does; 5,000 at most."""
    import os

    found: dict[str, object] = {}
    device = os.stat(folder).st_dev
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if os.lstat(os.path.join(place, name)).st_dev == device]
        for name in [*names, *(name + "/" for name in folders)]:
            path = os.path.join(place, name)
            try:
                stat = os.lstat(path.rstrip("/"))
            except OSError:
                continue
            content = 0 if name.endswith("/") else (stat.st_size, stat.st_mtime_ns, stat.st_mode)
            found[os.path.relpath(path, folder) + path[len(path.rstrip("/")) :]] = (stat.st_ino, content)
            if len(found) == 5000:
                return found
    return found


def _bash_run(command: str, folder: str) -> str:
    """Run it in a new bash that takes up the state of the last one; JSON of what it did."""
    import json
    import os
    import signal
    import subprocess
    import sys
    import tempfile

    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    state = globals().setdefault("_bash_state", {"text": "", "folder": folder})
    before = _bash_files(folder)
    with tempfile.TemporaryDirectory() as private:
        kept, script = os.path.join(private, "state"), os.path.join(private, "command")
        for path, text in ((kept, state["text"]), (script, command + "\n")):
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        save = f"{{ declare -p; declare -f; alias -p; shopt -p; set +o; }} > {kept} 2> /dev/null; pwd > {kept}.folder"
        start = f"trap '{save}' EXIT\nshopt -s expand_aliases\n. {kept} 2> /dev/null\neval \"$(cat {script})\"\n"
        place = state["folder"] if os.path.isdir(state["folder"]) else folder
        sys.stdout.flush()
        sys.stderr.flush()
        shell = subprocess.Popen(
            ["bash", "-c", start, "bash"],
            stdin=subprocess.DEVNULL,
            cwd=place,
            env={**os.environ, "HOME": folder},
            start_new_session=True,
        )
        try:
            status = shell.wait()
        except BaseException:  # the time-out: what it started goes with it
            os.killpg(shell.pid, signal.SIGKILL)
            raise
        for name, path in (("text", kept), ("folder", kept + ".folder")):
            if os.path.exists(kept + ".folder"):  # else it was killed, and the state is the one before
                with open(path, encoding="utf-8", errors="surrogateescape") as file:
                    state[name] = file.read().rstrip("\n")
    after = _bash_files(folder)
    told = {
        "status": status,
        "folder": os.path.relpath(state["folder"], folder),
        "created": sorted(set(after) - set(before)),
        "changed": sorted(name for name in set(after) & set(before) if after[name] != before[name]),
        "deleted": sorted(set(before) - set(after)),
    }
    return json.dumps(told)


_INSIDE = f"{inspect.getsource(_bash_files)}\n{inspect.getsource(_bash_run)}\n"
