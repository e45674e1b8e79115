"""The embedded sandbox: a fork server and confined sessions, without Docker. See docs/sandbox.md."""

from solostream.sandbox.fork.host import ForkSandbox, ForkSession

__all__ = ["ForkSandbox", "ForkSession"]
