"""The two errors every floor shares. Both messages name the remedy."""


class UserError(ValueError):
    """The input is wrong (a config key, a path, a spec string, data). The CLI prints it as one line, exit code 2."""


class SandboxError(RuntimeError):
    """The infrastructure failed, not the code that ran in it: never an observation, never a reward."""
