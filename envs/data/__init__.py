"""Tasks from files, from Hugging Face data sets, from generators and from mixtures of them."""

from solostream.envs.data.combine import dedup, mix, split
from solostream.envs.data.generators import is_made
from solostream.envs.data.loader import Tasks, TaskSource, load, tasks
from solostream.envs.data.pair import train_and_test
from solostream.envs.data.sources import only_tests, training_split

__all__ = [
    "TaskSource",
    "Tasks",
    "dedup",
    "is_made",
    "load",
    "mix",
    "only_tests",
    "split",
    "tasks",
    "train_and_test",
    "training_split",
]
