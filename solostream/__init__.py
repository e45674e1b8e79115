"""Train, watch and evaluate language-model agents that think with a Python interpreter.

The floors are sub-packages: `errors, registry <- sandbox <- envs <- agent <- evaluation <- training, viewer <- cli`.
What stands here is loaded at its first use, so that `import solostream` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solostream.agent.trajectory import Trajectory
    from solostream.envs.tool_env import ToolEnv
    from solostream.evaluation.result import Evaluation, evaluate
    from solostream.sandbox.interpreter import Interpreter
    from solostream.sandbox.spec import open_sandbox
    from solostream.training.run.train import TrainResult, train

__all__ = [
    "Evaluation",
    "Interpreter",
    "ToolEnv",
    "TrainResult",
    "Trajectory",
    "__version__",
    "evaluate",
    "open_sandbox",
    "train",
]

__version__ = "0.1.0"

_HOMES = {
    "Evaluation": "solostream.evaluation.result",
    "Interpreter": "solostream.sandbox.interpreter",
    "ToolEnv": "solostream.envs.tool_env",
    "Trajectory": "solostream.agent.trajectory",
    "TrainResult": "solostream.training.run.train",
    "evaluate": "solostream.evaluation.result",
    "open_sandbox": "solostream.sandbox.spec",
    "train": "solostream.training.run.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'solostream' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
