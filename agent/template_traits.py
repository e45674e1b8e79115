"""What a chat template has and what it lacks, found by rendering: a system role, a tool's, a place for tools."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from solostream.errors import UserError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]], bool], str]

SPOKEN = "\u2042spoken\u2042"  # stands for the assistant's turn
CALL_ID = "call00000"  # nine letters and digits, as Mistral's templates insist
DATE = "2025-01-01"  # where no run says which: evaluations of different days see one prompt
USER = {"role": "user", "content": "question"}
_PROBE = "observed"
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_of_tools",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probed_argument": {"type": "string", "description": "x"}}},
    },
}
# How a tool's output may be said, the most particular first: the fields of its message, and whether a call precedes it.
_WAYS: tuple[tuple[dict[str, str], bool], ...] = (
    ({"role": "tool"}, False),
    ({"role": "tool", "tool_call_id": CALL_ID}, False),
    ({"role": "tool", "tool_call_id": CALL_ID}, True),
)


def assistant(content: str = SPOKEN) -> dict[str, Any]:
    """An assistant's turn that says `content`, as a template takes it."""
    return {"role": "assistant", "content": content}


def called(tool: str) -> dict[str, Any]:
    """An assistant's turn that is a call."""
    function = {"name": tool, "arguments": {"code": SPOKEN}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": CALL_ID, "type": "function", "function": function}],
    }


def pinned(date: str | None) -> dict[str, Any]:
    """The clock of a template: one day, whenever it is asked. Raises UserError."""
    try:
        day = datetime.datetime.fromisoformat(date or DATE)
    except ValueError:
        raise UserError(f"date {date!r}: write it as 2026-11-26") from None
    return {"strftime_now": day.strftime}


class Traits:
    """Of one template. marks: its tokenizer's tokens that stand for no text."""

    def __init__(self, render: Render, marks: Sequence[str]) -> None:
        self._try, self._marks = render, marks
        self._tool: dict[str, str] | None = None  # fields of a tool's message; None: it is the user's
        self._tools: dict[bool, bool] = {}
        self.needs_call = False
        for fields, needs_call in _WAYS:
            before = called("python") if needs_call else assistant()
            shown = self._shown([USER, before, {"name": "python", **fields, "content": _PROBE}], (), _PROBE)
            if shown and SPOKEN in shown:
                self._tool, self.needs_call = fields, needs_call
                break

    @cached_property
    def has_system(self) -> bool:
        """Whether the template renders a system message: one with a probe in it is tried."""
        return self._shown([{"role": "system", "content": _PROBE}, USER], (), _PROBE) is not None

    @cached_property
    def shows_user(self) -> bool:
        """Whether the template renders what the user says."""
        return self._shown([{**USER, "content": _PROBE}], (), _PROBE) is not None

    def shows_tools(self, system: bool) -> bool:
        """Whether it tells of a tool's name and arguments, in a conversation with a system message or without."""
        if system not in self._tools:
            begin = [{"role": "system", "content": "be brief"}] if system and self.has_system else []
            text = self._shown([*begin, USER], (_TOOL,), "probe_of_tools")
            self._tools[system] = text is not None and "probed_argument" in text
        return self._tools[system]

    def arranged(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in roles that the template has: system text before the user's, a tool's output as the user's,
        one message where two of the user follow each other.
        """
        arranged: list[dict[str, Any]] = []
        for message in messages:
            one = dict(message)
            if one["role"] == "tool":
                one = {**one, **self._tool} if self._tool else {"role": "user", "content": one["content"]}
            elif one["role"] == "system" and not self.has_system:
                one = {"role": "user", "content": one["content"]}
            same = bool(arranged) and arranged[-1]["role"] == one["role"] == "user"
            if same and (self._tool is None or not self.has_system):
                arranged[-1]["content"] += "\n\n" + one["content"]
            else:
                arranged.append(one)
        return list(arranged)

    def behind(self, text: str) -> str:
        """What follows the assistant's turn. Raises UserError where the template does not show it."""
        _, found, after = text.partition(SPOKEN)
        if not found:
            raise UserError("the chat template does not show what the assistant said: pass another template")
        if not self.needs_call:
            return after
        # Behind a call its closing brackets come first, which the policy wrote.
        places = [at for mark in self._marks if (at := after.find(mark)) >= 0]
        return after[min(places, default=0) :]

    def _shown(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], what: str) -> str | None:
        """The rendering, if it works and shows `what`."""
        try:
            text = self._try(messages, tools, True)
        except UserError:
            return None
        return text if what in text else None
