"""What a chat endpoint is asked for, and what it answered, read once: text, reasoning, tool calls, counts.

Servers that call themselves OpenAI-compatible answer in many ways with status 200: an `error` in place of choices, no
choices at all, content in parts, no content beside calls, arguments as an object, ids that are missing or twice the
same. What can be understood is; the rest is `OddReply`, never an empty turn of the policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from solostream.agent.engine import EngineError
from solostream.agent.trajectory import Usage


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is sent beside the messages. None is not sent: the server's default holds.

    extra: further fields of the request's body, for what only this server knows.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # not in OpenAI's protocol; vLLM, SGLang and others take it
    max_tokens: int | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class ContextOverflow(EngineError):
    """The conversation does not fit the model's context: the end of this episode, of no other."""


class Refused(EngineError):
    """The server finds fault with the request (400, 413, 422, …)."""


class OddReply(Exception):
    """A 200 that is no reply."""


class ErrorReply(OddReply):
    """A 200 that holds an error; `status` is the one it would have deserved, `body` what it says."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"a 200 that holds an error ({status}): {body}")
        self.status, self.body = status, body


@dataclass(frozen=True, slots=True)
class NativeCall:
    """`arguments` as the model wrote them: JSON, if it is any."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of the assistant. finish: why it ended ("stop", "tool_calls", "length", …).

    reasoning_field: the name under which the server sent `reasoning`, and takes it back. usage: None where not told.
    """

    text: str
    reasoning: str
    reasoning_field: str
    calls: tuple[NativeCall, ...]
    finish: str
    usage: Usage | None

    def message(self) -> dict[str, Any]:
        """What is sent back as history. Reasoning goes with its calls: some servers insist on it there and refuse it
        elsewhere.
        """
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.calls
        ]
        reasoning = {self.reasoning_field: self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls, **reasoning}


def read_reply(answer: str) -> Reply:
    """The first choice of a body. Raises OddReply, ErrorReply."""
    try:
        body = json.loads(answer)
    except ValueError:
        raise OddReply(f"no JSON but {answer[:200]!r}") from None
    if not isinstance(body, Mapping):
        raise OddReply(f"no object but {answer[:200]!r}")
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, Sequence) and choices and not isinstance(choices, str) else None
    trouble = body.get("error") or (choice.get("error") if isinstance(choice, Mapping) else None)
    if trouble:
        raise ErrorReply(_status(trouble), trouble)
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        raise OddReply(f"no choice with a message in {answer[:200]!r}")
    if choice.get("finish_reason") == "error":
        raise OddReply("the server broke off in the middle of its reply")
    message = choice["message"]
    text, thought = _content(message.get("content"))
    text = text or _text(message.get("refusal"))
    name = next((n for n in ("reasoning_content", "reasoning") if isinstance(message.get(n), str)), "reasoning_content")
    reasoning = _text(message.get(name)) or thought
    finish = str(choice.get("finish_reason") or "stop")
    return Reply(text, reasoning, name, _calls(message), finish, _usage(body.get("usage")))


def _status(trouble: Any) -> int:
    code = trouble.get("code") if isinstance(trouble, Mapping) else None
    try:
        return int(code)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 400 if code == "context_length_exceeded" else 500


def _content(content: Any) -> tuple[str, str]:
    """(text, reasoning) of a string, of null, or of a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, Sequence):
        raise OddReply(f"content that is no text: {str(content)[:200]!r}")
    texts, thoughts = [], []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        said = _text(part.get(kind, part.get("text")) if isinstance(part, Mapping) else part)
        if kind in ("thinking", "reasoning"):
            thoughts.append(said)
        elif kind in ("text", "output_text", "refusal"):
            texts.append(said or _text(part.get("text") if isinstance(part, Mapping) else None))
        else:
            raise OddReply(f"content with a part of type {kind!r}: only text is understood")
    return "".join(texts), "".join(thoughts)


def _text(value: Any) -> str:
    """Text, or that of a list of parts within a part (Mistral's thinking)."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(_text(part.get("text") if isinstance(part, Mapping) else part) for part in value)
    return value if isinstance(value, str) else ""


def _calls(message: Mapping[str, Any]) -> tuple[NativeCall, ...]:
    found = message.get("tool_calls") or ()
    if not found and isinstance(message.get("function_call"), Mapping):
        found = [{"function": message["function_call"]}]  # the form before tools
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise OddReply(f"tool_calls that are no list: {str(found)[:200]!r}")
    calls: list[NativeCall] = []
    for index, call in enumerate(found):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise OddReply(f"a tool call without a function: {str(call)[:200]!r}")
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = json.dumps({} if arguments is None else arguments)
        own = call.get("id")
        taken = not isinstance(own, str) or not own or any(own == earlier.id for earlier in calls)
        calls.append(NativeCall(f"call_{index}" if taken else own, _text(function.get("name")), arguments or "{}"))
    return tuple(calls)


def _usage(record: Any) -> Usage | None:
    if not isinstance(record, Mapping):
        return None
    prompt, completion = record.get("prompt_tokens"), record.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt < 0 or completion < 0:
        return None
    cached = _detail(record, "prompt_tokens_details", "cached_tokens")
    return Usage(1, prompt, cached, completion, _detail(record, "completion_tokens_details", "reasoning_tokens"))


def _detail(record: Mapping[str, Any], group: str, name: str) -> int:
    details = record.get(group)
    count = details.get(name) if isinstance(details, Mapping) else None
    return count if isinstance(count, int) and count >= 0 else 0
