"""What the policy sees of an execution. Durations never show: observations are deterministic."""

from __future__ import annotations

from solostream.sandbox.types import Execution

LOST = "(the interpreter was restarted: variables are lost)"


def observe(execution: Execution, *, tracebacks: bool = True) -> str:
    """stdout, the text of what `display` showed, the last value, stderr, the error; "(no output)" where there is none.

    tracebacks=False: an exception is its name and message, one line.
    """
    parts = [
        _cut(execution.stdout, execution.stdout_truncated),
        *(bundle["text/plain"] for bundle in execution.display if "text/plain" in bundle),
        _cut(execution.result or "", execution.result_truncated),
        _cut(execution.stderr, execution.stderr_truncated),
    ]
    if execution.error is not None:
        error = execution.error
        line = f"{error.name}: {error.message}".removesuffix(": ")
        parts.append(error.traceback.strip() or line if tracebacks else line)
    elif execution.status == "timeout":
        parts.append("TimeoutError: the code ran too long and was stopped")
    elif execution.status == "memory":
        parts.append("MemoryError: the code used too much memory and was stopped")
    elif execution.status == "killed":
        parts.append("the interpreter was killed")
    if not execution.state_kept:
        parts.append(LOST)
    return "\n".join(part for part in parts if part) or "(no output)"


def _cut(text: str, truncated: bool) -> str:
    return text.rstrip("\n") + ("\n[… output cut …]" if truncated else "")
