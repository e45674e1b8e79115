"""From trajectories to gradients: SPO, ASPO, the learner and the pipeline.

`Trainer` and `TrainConfig` are loaded at their first use: reading a configuration needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solostream.training.config import Config as TrainConfig
    from solostream.training.run.trainer import Trainer

__all__ = ["TrainConfig", "Trainer"]


def __getattr__(name: str) -> Any:
    if name == "TrainConfig":
        from solostream.training.config import Config

        return Config
    if name == "Trainer":
        from solostream.training.run.trainer import Trainer

        return Trainer
    raise AttributeError(f"module 'solostream.training' has no attribute {name!r}")
