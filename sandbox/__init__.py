"""Run Python that a model wrote: code in, `Execution` out."""

from solostream.errors import SandboxError, UserError
from solostream.sandbox.interpreter import Interpreter
from solostream.sandbox.spec import open_sandbox
from solostream.sandbox.types import CodeError, Execution, Limits, Sandbox, Session

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
