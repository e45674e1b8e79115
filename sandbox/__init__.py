"""Run Python that a model wrote: code in, `Execution` out."""

from sandbox.errors import SandboxError, UserError
from sandbox.types import CodeError, Execution, Limits, Sandbox, Session

__all__ = ["CodeError", "Execution", "Limits", "Sandbox", "SandboxError", "Session", "UserError"]
