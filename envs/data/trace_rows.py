"""The layouts in which people keep conversations: a row to messages of one spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_ROLES |= {"developer": "system"} | dict.fromkeys(("observation", "function", "ipython", "tool_response"), "tool")
_SIDES = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
# Whether a message is learnt, as OpenAI and ShareGPT, axolotl (two names) and ms-swift spell it.
_WEIGHTS = ("weight", "train", "training", "loss")
_WEIGHTS_OF_PARTS = ("train_detail", "training_detail")  # axolotl's


class BadTrace(ValueError):
    """Why a line is no trace."""


def messages_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Each with role, content, tool_calls, `answers` (the call that an output names) and `trained`. Raises BadTrace."""
    said = row.get("system")
    opening = [{"role": "system", "content": said}] if isinstance(said, str) and said.strip() else []
    for name in ("messages", "conversations", "conversation"):
        listed = row.get(name)
        if isinstance(listed, str) and listed.lstrip().startswith("["):
            listed = decoded(listed, name)
        if isinstance(listed, list):
            return [_message(one) for one in (*opening, *listed)]
    for asked, told in _SIDES:
        if row.get(asked) is not None and row.get(told) is not None:
            more = f"\n\n{row['input']}" if asked == "instruction" and row.get("input") else ""
            sides: list[Any] = []
            for role, side in (("user", row[asked]), ("assistant", row[told])):
                text = side + more if role == "user" and isinstance(side, str) else side
                if not isinstance(side, str | list):
                    raise BadTrace(f"its {asked if role == 'user' else told} is neither text nor messages")
                sides += [{"role": role, "content": text}] if isinstance(side, str) else side
            return [_message(one) for one in (*opening, *sides)]
    have = ", ".join(map(str, row)) or "nothing"
    raise BadTrace(f"no messages, no conversations, no prompt and completion (it has: {have})")


def _message(one: Any) -> Mapping[str, Any]:
    """Role, content and calls of a message in either spelling."""
    if not isinstance(one, Mapping):
        raise BadTrace("a message that is no object")
    role = one.get("role", one.get("from"))
    content = one.get("content", one.get("value"))
    calls = one.get("tool_calls") or ([one["function_call"]] if one.get("function_call") else [])
    if not isinstance(calls, list):
        raise BadTrace("tool_calls that are no list")
    if role == "function_call":  # ShareGPT's own: the call is the message
        calls = [decoded(content, "the function_call")]
        return {"role": "assistant", "content": "", "tool_calls": calls, "trained": _trained(one)}
    role = _ROLES.get(str(role), role)
    if role not in ("system", "user", "assistant", "tool"):
        raise BadTrace(f"a message of the role {role!r}")
    if isinstance(content, list):
        content = "".join(map(_text_of, content))
    if content is None and (calls or role == "tool"):
        content = ""
    if not isinstance(content, str):
        raise BadTrace(f"a message of the {role} without text: its content is text, or a list of parts that are")
    thought = one.get("reasoning_content") or one.get("reasoning")
    if role == "assistant" and isinstance(thought, str) and thought.strip():
        content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
    # A progress bar's carriage returns stay in an output, where its environment shows them.
    content = content.replace("\r\n", "\n") if role == "tool" else with_newlines(content)
    answers = one.get("tool_call_id")
    return {
        "role": role,
        "content": content,
        "tool_calls": calls,
        "answers": None if answers is None else str(answers),
        "trained": role != "assistant" or _trained(one),
    }


def _trained(one: Mapping[str, Any]) -> bool:
    """Whether a message of the assistant is trained on."""
    for name in _WEIGHTS:
        weight = one.get(name)
        if weight is not None and weight not in (0, 1):
            raise BadTrace(f"{name} = {weight!r} at a message: 1 (it is learnt) or 0 (it is only read)")
        if weight == 0:
            return False
    if parts := next((name for name in _WEIGHTS_OF_PARTS if one.get(name)), None):
        raise BadTrace(f"{parts} at a message, which is learnt whole or not at all: write train = true or false")
    return True


def _text_of(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):  # a picture: what is said of it would be learnt without it
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise BadTrace(f"a part of a message that is no text ({kind})")
    return text


def with_newlines(text: str) -> str:
    """With the line ends of Windows and of old Macs as a newline: what reads calls and outputs knows no other."""
    return re.sub(r"\r\n?", "\n", text)


def decoded(text: Any, what: str) -> Any:
    """JSON, where it is still text. Raises BadTrace."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        raise BadTrace(f"{what} is not JSON") from None
