"""Continuous batching over any Hugging Face causal language model, in this process."""

from solostream.agent.engines.hf.engine import HFEngine
from solostream.agent.engines.hf.forward import load_model

__all__ = ["HFEngine", "load_model"]
