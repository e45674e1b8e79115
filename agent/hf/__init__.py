"""Continuous batching over any Hugging Face causal language model, in this process."""

from agent.hf.engine import HFEngine

__all__ = ["HFEngine"]
