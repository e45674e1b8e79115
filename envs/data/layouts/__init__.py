"""Published forms of rows, recognised by their first row: one small file a form.

Of the registry's kind "layout": a class or an object with `says`, `matches` and `fields`. One of your own is an entry
point of the group `solostream.layout`, or is named: `data.layout = "my_module:Mine"`. Entry points are asked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from solostream import registry
from solostream.envs.text.answers import final_answer
from solostream.envs.text.parse import Parsed


class Layout(Protocol):
    """`says`: for a person, what is read from where."""

    says: str

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has this form; asked of the first one only."""

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """`prompt`, `answer` and, where they are known, `id` and `source`. None for what this row lacks.

        Raises ValueError that says why the row cannot be one problem.
        """


def recognised(row: Mapping[str, Any]) -> tuple[str, Layout] | None:
    """(name, layout) of the first layout that `row` matches."""
    built_in = registry.BUILT_IN["layout"]
    for name in sorted(registry.names("layout"), key=lambda name: name in built_in):
        layout = registry.make("layout", name)
        if layout.matches(row):
            return name, layout
    return None


def is_chat(value: Any) -> bool:
    """Whether `value` is a list of messages: mappings that have a role and content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in value)
    )


def question(messages: list[Mapping[str, Any]], where: str) -> str:
    """What the one user's message asks. A system message is passed over: how to answer is the environment's to say.

    Raises ValueError for a conversation of several turns.
    """
    asked = [message for message in messages if message["role"] != "system"]
    if len(asked) != 1 or asked[0]["role"] != "user":
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ValueError(f"{where!r} is not one question but a conversation ({roles})")
    return text(asked[0]["content"], where)


def text(content: Any, where: str) -> str:
    """A message's text; content in parts is joined. Raises ValueError for images and other parts that are no text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise ValueError(f"{where!r} holds content that is no text")
    return "\n".join(part["text"] for part in parts)


def final(solution: Any) -> Any:
    r"""The answer of a worked solution: the last \boxed{…}, else what follows the last ####, else all of it."""
    if not isinstance(solution, str):
        return solution
    boxed = final_answer(solution, Parsed((), ()), "boxed")
    return boxed[0] if boxed else solution.rpartition("####")[2].strip()
