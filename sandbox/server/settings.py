"""What the server is started with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from solostream.sandbox.types import Limits

# Large outputs are one of the things that SandboxFusion's users miss.
SERVER_LIMITS = Limits(output_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Settings:
    """`sandbox` is a spec string; the counts hold for each worker."""

    sandbox: str = "fork"
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""  # empty: everyone may
    workers: int = 1
    sessions: int = 1024  # open at a time
    running: int = 64  # calls at a time
    queue: int = 1024  # calls that may wait for their turn
    queue_timeout_s: float = 30.0
    idle_s: float = 600.0  # a session that nobody calls for so long is closed
    max_timeout_s: float = 600.0  # the longest time-out that a request may ask for
    max_body_mb: float = 32.0
    grace_s: float = 5.0  # on shutdown, for calls in progress
    limits: Limits = SERVER_LIMITS

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the worker processes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Settings:
        """The inverse of `to_dict`."""
        return cls(**{**record, "limits": Limits(**record["limits"])})
