"""Supervised steps before reinforcement learning."""
