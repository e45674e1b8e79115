"""The language of this floor: code in, `Execution` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from solostream.errors import UserError

Status = Literal["ok", "error", "timeout", "memory", "killed"]

_MOST = 1 << 31

# What a backend promises, most of it against hostile code: docs/sandbox.md says what each word means. `solostream
# sandbox check` tests every promise that is claimed.
Claim = Literal[
    "state",
    "filesystem",
    "network",
    "sessions",
    "host",
    "memory",
    "processes",
    "disk",
    "environment",
    "orphans",
    "fork",
]


@dataclass(frozen=True, slots=True)
class CodeError:
    """An exception that the executed code raised and did not catch."""

    name: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Execution:
    """What one call did. Infrastructure failures are not executions: they raise `SandboxError`.

    `result` is the repr of the last expression (None when the code ends in a statement or evaluates to None).
    `state_kept` says whether the session's variables survived the call.
    """

    stdout: str = ""
    stderr: str = ""
    result: str | None = None
    error: CodeError | None = None
    status: Status = "ok"
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    result_truncated: bool = False
    duration_s: float = 0.0
    state_kept: bool = True
    display: tuple[Mapping[str, str], ...] = ()  # rich output of notebook backends: MIME type -> data

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end without an error."""
        return self.status == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Execution:
        """The inverse of `to_dict`. Raises KeyError or TypeError on a damaged record."""
        error = record.get("error")
        display = tuple(record.get("display", ()))
        return cls(**{**record, "error": CodeError(**error) if error else None, "display": display})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may use. A backend that cannot enforce a limit says so in its `isolation`.

    Raises: UserError for a limit that is not a positive number: the kernel reads 0 as "no limit" here and there.
    """

    timeout_s: float = 10.0  # wall clock of one call when `run` names none
    memory_mb: int = 512
    processes: int = 64
    disk_mb: int = 64
    open_files: int = 256
    output_bytes: int = 65_536  # kept of each of stdout, stderr and result

    def __post_init__(self) -> None:
        check_timeout(self.timeout_s)
        for name in ("memory_mb", "processes", "disk_mb", "open_files", "output_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
                raise UserError(f"{name}={value!r} is no limit; give a whole number, 1 or more")

    def seconds(self, timeout: float | None) -> float:
        """The time-out of a call that names `timeout`, or none. Raises UserError."""
        return self.timeout_s if timeout is None else check_timeout(timeout)


def check_timeout(seconds: float, name: str = "timeout") -> float:
    """Raises UserError for what no clock can run down: zero, negative, infinite or not a number."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= _MOST:
        raise UserError(f"{name}={seconds!r} is no time-out; give seconds, more than 0 and finite")
    return seconds


@runtime_checkable
class Session(Protocol):
    """One stateful interpreter."""

    isolation: str  # the tier that is in force, for example "namespaces+seccomp+landlock+rlimits"

    async def run(self, code: str, *, timeout: float | None = None) -> Execution:
        """Run `code`; `timeout` in seconds (default: the sandbox's limit). Raises `SandboxError`."""
        ...

    async def close(self) -> None:
        """Kill everything the session started. Idempotent."""
        ...


@runtime_checkable
class Forkable(Protocol):
    """A session of a backend that claims "fork"."""

    async def fork(self) -> Session:
        """A live copy of the session, variables and all; both go on by themselves. Raises `SandboxError`."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """A backend; owns its pool."""

    isolation: str
    limits: Limits
    claims: frozenset[Claim]

    async def open(self) -> Session:
        """A fresh session that has seen no other session's state. Raises `SandboxError`."""
        ...

    async def close(self) -> None:
        """Close every session; nothing survives. Idempotent."""
        ...
