"""Run Python that a model wrote: code in, `Execution` out."""

from sandbox.errors import SandboxError, UserError
from sandbox.interpreter import Interpreter
from sandbox.spec import open_sandbox
from sandbox.types import CodeError, Execution, Limits, Sandbox, Session

__all__ = [
    "CodeError",
    "Execution",
    "Interpreter",
    "Limits",
    "Sandbox",
    "SandboxError",
    "Session",
    "UserError",
    "open_sandbox",
]
