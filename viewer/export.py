"""One trajectory for other places: Markdown to paste, or a log that Inspect (inspect_ai) opens.

The log is Inspect's `EvalLog` of version 2 as JSON, with one sample; `inspect view` and `read_eval_log` read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from solostream.agent.trajectory import Trajectory
from solostream.evaluation.metrics import SOLVED
from solostream.evaluation.tool_use import error_name

WHO = {
    "system": "System",
    "user": "Problem",
    "assistant": "Policy",
    "tool": "Tool output",
    "context": "History replaced",
}


def markdown(fields: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The conversation with its verdict. fields, record: as `Index.record` gives them."""
    lines = [f"# {record['task_id']}", "", *(f"- {name}: {value}" for name, value in _facts(fields, record)), ""]
    for turn in record["turns"]:
        lines += [f"## {WHO.get(turn['role'], turn['role'])}", ""]
        if turn.get("reasoning"):
            lines += ["> " + line for line in turn["reasoning"].splitlines()] + [""]
        lines += [_fenced(turn["text"].strip(), "text"), ""]
    return "\n".join(lines)


def inspect_log(fields: Mapping[str, Any], record: Mapping[str, Any], model: str, run: str) -> str:
    """One sample of `EvalLog`. model: what played; run: where it is from."""
    when = datetime.now(UTC).isoformat()
    name = f"{run}/{fields['id']}"
    messages = list(_messages(record))
    grading = record["grading"] or {}
    said = next((m for m in reversed(messages) if m["role"] == "assistant"), None)
    score = {
        "value": record["reward"],
        "answer": record["answer"],
        "explanation": "; ".join(f"{k}: {why}" for k, why in grading.get("reasons", {}).items()) or None,
    }
    sample = {
        "id": record["task_id"],
        "epoch": (fields["sample"] or 0) + 1,
        "input": next((m["content"] for m in messages if m["role"] == "user"), ""),
        "target": list(grading.get("expected", [])),
        "messages": messages,
        "output": {
            "model": model,
            "choices": [{"message": said, "stop_reason": "stop"}] if said else [],
        },
        "scores": {"reward": score},
        "metadata": {
            "source": record["source"], "ending": record["ending"], "seed": str(record["seed"]), "step": fields["step"],
            "advantage": fields["advantage"], "tracked_value": fields["value"],
        },
    }  # fmt: skip
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": name, "run_id": run, "created": when, "task": run, "task_id": run, "task_version": 0,
            "dataset": {"name": record["source"] or "problems", "samples": 1, "sample_ids": [record["task_id"]]},
            "model": model, "model_args": {}, "config": {}, "packages": {},
        },
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {"total_samples": 1, "completed_samples": 1, "scores": [
            {"name": "reward", "scorer": "reward", "metrics": {"mean": {"name": "mean", "value": record["reward"]}}},
        ]},
        "stats": {"started_at": when, "completed_at": when, "model_usage": {}},
        "samples": [sample],
    }  # fmt: skip
    return json.dumps(log, ensure_ascii=False, indent=1)


def _facts(fields: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    grading = record["grading"] or {}
    yield "reward", f"{record['reward']:g} ({'solved' if record['reward'] > SOLVED else 'not solved'})"
    yield "answer", str(record["answer"] if record["answer"] is not None else "none")
    if grading.get("expected"):
        yield "expected", " or ".join(grading["expected"])
    for name, reason in grading.get("reasons", {}).items():
        yield f"graded by {name}", reason
    yield "ending", record["ending"].replace("_", " ")
    if fields["step"] is not None:
        yield "step", str(fields["step"])
    if fields["advantage"] is not None:
        yield "advantage", f"{fields['advantage']:.3f}"
    yield "seed", str(record["seed"])


def _fenced(text: str, kind: str) -> str:
    """In a fence longer than any in the text: what a model wrote stays text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"


def _messages(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inspect's chat messages: each executed call is answered by a `tool` message of its own."""
    asked: list[tuple[str, Any, Any]] = []  # id, call and execution of the turn before
    for i, turn in enumerate(Trajectory.from_dict(dict(record)).turns):
        if turn.role == "assistant":
            asked = [(f"{i}-{j}", c, e) for j, (c, e) in enumerate(zip(turn.calls, turn.executions, strict=True))]
            content: Any = turn.text
            if turn.reasoning:
                content = [{"type": "reasoning", "reasoning": turn.reasoning}, {"type": "text", "text": turn.text}]
            calls = [
                {"id": key, "function": call.name, "arguments": dict(call.arguments), "type": "function"}
                for key, call, _ in asked
            ]
            yield {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
        elif turn.role == "tool":
            for j, (key, call, execution) in enumerate(asked or [("", None, None)]):
                wrong = error_name(call, execution) if call else None
                yield {
                    "role": "tool",
                    "content": turn.text if j == 0 else "",  # the policy read one text for all calls of a turn
                    **({"tool_call_id": key, "function": call.name} if call else {}),
                    **({"error": {"type": _TYPES.get(wrong, "unknown"), "message": wrong}} if wrong else {}),
                }
            asked = []
        elif turn.role != "context":  # said, but by nobody
            yield {"role": turn.role, "content": turn.text}


_TYPES = {"timeout": "timeout", "malformed": "parsing", "unclosed": "parsing", "not run": "limit"}
