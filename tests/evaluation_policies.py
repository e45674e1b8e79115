"""Policies for evaluations without a model: text so far in, next turn out (`scripted:evaluation_policies:…`)."""

from __future__ import annotations

import re

from solostream.agent.engine import EngineError

CALLS: list[str] = []  # every prompt that was asked since the test began


def calculator(text: str) -> str:
    """Copies the expression of `a + b`-like problems into Python, then repeats what it printed."""
    CALLS.append(text)
    tail = text.rpartition("<|im_start|>user")[2]
    if "<|im_start|>tool" in text:
        shown = re.findall(r"-?\d+", text.rpartition("<|im_start|>tool")[2])
        return f"So it is \\boxed{{{shown[0] if shown else 0}}}."
    numbers = re.findall(r"\d+", tail)
    return f"Let me compute.\n```python\nprint({numbers[0]} * {numbers[1]})\n```\n"


def guesser(text: str) -> str:
    """Never calls Python."""
    CALLS.append(text)
    return "I guess \\boxed{6}."


def down(text: str) -> str:
    raise EngineError("the policy is down: start it")
