"""The run's configuration: TOML in, frozen pydantic models out; a wrong key is one line that names the remedy."""

from solostream.training.config.cold_start import Phase
from solostream.training.config.models import BuildConfig, Config, ModelConfig
from solostream.training.config.parse import assign, expand, load, name_of, read, swept, validate

__all__ = [
    "BuildConfig",
    "Config",
    "ModelConfig",
    "Phase",
    "assign",
    "expand",
    "load",
    "name_of",
    "read",
    "swept",
    "validate",
]
