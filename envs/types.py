"""The language of this floor: text in, text and a reward out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from solostream.sandbox.types import Execution

CallStatus = Literal["ok", "unclosed", "malformed"]
UNREADABLE = "Error: this call could not be read:"  # how the answer to a call begins whose status is not "ok"
NO_SUCH_TOOL = "Error: no such tool;"  # and to one of a tool that the environment has not
EnvEnding = Literal["answered", "void", "turn_limit", "token_limit", "time_limit"]


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. `id` is stable; data without ids gets a content hash. `meta["answers"]`: where several are right."""

    id: str
    prompt: str
    answer: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that is right: `answer` and the others of `meta["answers"]`."""
        return tuple(dict.fromkeys((self.answer, *self.meta.get("answers", ()))))

    @property
    def kind(self) -> str:
        """Of the problems of its source, where `meta["kind"]` says one: a family, a subject, a level."""
        return str(self.meta.get("kind") or "")

    @property
    def level(self) -> str:
        """Of difficulty among the problems of its source, where `meta["level"]` says one."""
        level = self.meta.get("level")
        return "" if level is None else str(level)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the policy wrote. `span` is in characters of the turn's text, fences and tags included."""

    name: str
    arguments: Mapping[str, Any]
    span: tuple[int, int]
    status: CallStatus = "ok"

    @property
    def code(self) -> str:
        """The Python source of a code call, else ""."""
        return str(self.arguments.get("code", ""))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "arguments": dict(self.arguments), "span": list(self.span)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ToolCall:
        """The inverse of `to_dict`. Raises KeyError or TypeError on a damaged record."""
        return cls(**{**record, "span": tuple(record["span"])})


@dataclass(frozen=True, slots=True)
class Grading:
    """How an episode came to its reward, for those who read it later.

    expected: the accepted answers. style: which answer style matched. scores and reasons: by reward; the reason of
    `correct` is the rule that graded the answer. failure: why there is no reward.
    """

    expected: tuple[str, ...] = ()
    style: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "expected": list(self.expected),
            "style": self.style,
            "scores": dict(self.scores),
            "reasons": dict(self.reasons),
            "failure": self.failure,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Grading:
        """The inverse of `to_dict`. Raises KeyError or TypeError on a damaged record."""
        return cls(**{**record, "expected": tuple(record["expected"])})


@dataclass(frozen=True, slots=True)
class Step:
    """What one `step(text)` did: the trace of an environment is its reset's first message and these, in order.

    `executions[i]` belongs to `calls[i]`; a call that was not executed (malformed, unclosed, over a budget) has None.
    `messages` are what a chat template appends before the policy speaks again.
    """

    text: str
    calls: tuple[ToolCall, ...]
    executions: tuple[Execution | None, ...]
    messages: tuple[Mapping[str, Any], ...]
    reward: float
    ending: EnvEnding | None  # None: the episode goes on
    answer: str | None = None
    grading: Grading | None = None  # of the step that ended the episode
    keep: int | None = None  # history was folded: of the turns before this one only so many are seen from now on

    @property
    def void(self) -> bool:
        """Neither a complete call nor a final answer (SimpleTIR, arXiv 2509.02479)."""
        return self.answer is None and not any(call.status == "ok" for call in self.calls)


def transcript(opening: Iterable[Mapping[str, Any]], steps: Iterable[Step]) -> str:
    """An episode as a person reads it."""
    blocks = [f"[{message['role']}] {message['content']}" for message in opening]
    for step in steps:
        blocks.append(f"[assistant] {step.text}")
        blocks += [f"[{message['role']}] {message['content']}" for message in step.messages]
        if step.ending:
            blocks.append(f"[{step.ending}] answer {step.answer!r}, reward {step.reward:g}")
    return "\n".join(blocks)
