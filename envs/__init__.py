"""Gymnasium environments for agents that write code: text in, text and a reward out."""
