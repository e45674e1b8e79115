"""Continuous batching over any Hugging Face causal language model, in this process."""

from agent.hf.engine import HFEngine
from agent.hf.forward import load_model

__all__ = ["HFEngine", "load_model"]
