"""Tasks from files, from Hugging Face data sets, from generators and from mixtures of them."""

from solostream.envs.data.loader import Tasks, TaskSource, dedup, from_rows, load, mix, split, tasks

__all__ = ["TaskSource", "Tasks", "dedup", "from_rows", "load", "mix", "split", "tasks"]
