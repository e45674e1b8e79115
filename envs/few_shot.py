"""Examples before the question: turns of a user, a call, what it printed, an answer.

A base model, or a small one that has hardly seen tools, follows examples where it does not follow instructions. They
are chat turns, written in the environment's own call syntax and answer style and rendered as an episode of the policy's
would be; nothing of them is trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from solostream.envs.data.trace_rows import BadTrace
from solostream.envs.data.traces import Trace, read_traces, told, trace_of
from solostream.envs.text.prompts import written_answer
from solostream.errors import UserError

FewShot = int | str | Sequence[Mapping[str, Any]]
BUILT_IN = Path(__file__).parent / "data" / "problems" / "examples.jsonl"


def examples(
    source: FewShot, syntax: tuple[str, ...], answer: str, tools: Sequence[str], parallel: bool
) -> tuple[dict[str, str], ...]:
    """The messages of all examples, for an environment of these call syntaxes, answer style and tools.

    source: how many of the built-in ones; a file, or rows, of conversations in any layout of `data.traces`. Without
    tools the turns with calls are left out. Raises UserError: rows that are no conversation, tools that are not there.
    """
    if isinstance(source, str):
        traces = _of_file(source, _stamp(source), syntax, parallel)
    else:
        rows = source if not isinstance(source, int) else _built_in(source, answer)
        traces = []
        for number, row in enumerate(rows, 1):
            try:
                traces.append(trace_of(row, syntax, parallel, number))
            except BadTrace as error:
                raise UserError(f"few_shot: example {number}: {error}") from None
    if tools and (missing := {call.name for trace in traces for call in trace.calls} - set(tools)):
        raise UserError(f"few_shot: the examples call {sorted(missing)}, and the tools here are {sorted(tools)}")
    return tuple(message for trace in traces for message in _turns(trace, bool(tools)))


def fingerprint(source: Any) -> str | None:
    """Of a file's content: an edited file is another prompt. None for what is no file."""
    if not isinstance(source, str):
        return None
    _stamp(source)
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]


def _turns(trace: Trace, tools: bool) -> list[dict[str, str]]:
    messages = [message for message in trace.messages if message["role"] != "system"]  # the environment has its own
    if tools or not trace.calls:
        return messages
    following = [*(message["role"] for message in messages[1:]), ""]
    return [m for m, after in zip(messages, following, strict=True) if "tool" not in (m["role"], after)]


def _built_in(count: int, answer: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in BUILT_IN.read_text(encoding="utf-8").splitlines()]
    if isinstance(count, bool) or not 0 <= count <= len(rows):
        raise UserError(f"few_shot = {count}: 0 to {len(rows)} built-in examples, or a .jsonl file of conversations")
    made = []
    for row in rows[:count]:
        call = {"function": {"name": "python", "arguments": {"code": row["code"]}}}
        made.append(
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": row["output"]},
                    {"role": "assistant", "content": written_answer(answer, row["answer"])},
                ]
            }
        )
    return made


def _stamp(path: str) -> tuple[int, int]:
    """Raises UserError where there is no such file."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise UserError(
            f"few_shot = {path!r}: {error.strerror}; give a number of built-in examples, or a .jsonl file"
        ) from None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=32)
def _of_file(path: str, stamp: tuple[int, int], syntax: tuple[str, ...], parallel: bool) -> list[Trace]:
    """Environments come in hundreds: a file is read once for each of its states."""
    traces, bad, at = read_traces(path, syntax, parallel)
    if bad:
        raise UserError(f"few_shot: {path}: {told(bad, at)}")
    if not traces:
        raise UserError(f"few_shot: {path} holds no example")
    return traces
