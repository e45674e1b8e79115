"""TRL's rows (its "dataset formats"): `prompt` as text or as messages, beside it the answer under one of a few names.

`completion`, which TRL's supervised trainer wants, is a worked solution; the others are answers.
"""

from collections.abc import Mapping
from typing import Any

from solostream.envs.data.layouts import final, is_chat, question, text

ANSWERS = ("answer", "solution", "ground_truth", "target")


def _answer(row: Mapping[str, Any]) -> Any:
    """Raises ValueError for a completion that is not one message."""
    name = next((name for name in ANSWERS if row.get(name) is not None), None)
    if name:
        return final(row[name]) if name == "solution" else row[name]
    said: Any = row.get("completion")
    if not is_chat(said):
        return final(said)
    if len(said) != 1:
        raise ValueError(f"'completion' is a conversation of {len(said)} messages")
    return final(text(said[0]["content"], "completion"))


def _has_answer(row: Mapping[str, Any]) -> bool:
    return any(name in row for name in (*ANSWERS, "completion"))


class Trl:
    """TRL's standard form: `prompt` is text."""

    says = f"prompt, the answer from one of {', '.join(ANSWERS)}, completion"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A text `prompt`, and an answer under a name that TRL's examples use."""
        return isinstance(row.get("prompt"), str) and _has_answer(row)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The prompt and the answer as they are. Raises ValueError for a completion of several messages."""
        return {"prompt": row.get("prompt"), "answer": _answer(row), "id": row.get("id")}


class Conversational:
    """TRL's conversational form: `prompt` is a list of messages."""

    says = f"the user's message of prompt, the answer from one of {', '.join(ANSWERS)}, completion"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A list of messages under `prompt`, and an answer under a name that TRL's examples use."""
        return is_chat(row.get("prompt")) and _has_answer(row)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The user's one message and the answer. Raises ValueError for a conversation of several turns."""
        prompt = question(row["prompt"], "prompt") if is_chat(row.get("prompt")) else None
        return {"prompt": prompt, "answer": _answer(row), "id": row.get("id")}
