"""What each kind of component promises, tried on one: `check("loss", "my_losses:Mine")`, for tests of your own, too.

The command `solostream check KIND SPEC` prints the same. A sandbox has a suite of its own (`sandbox.conformance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from solostream import registry
from solostream.errors import UserError
from solostream.training.contracts import learning, playing, watching

Promise = tuple[str, bool]  # what is promised, and whether it was kept
CHECKS: Mapping[str, Callable[[str, dict[str, Any]], list[Promise]]] = {
    "tool": playing.tool,
    "environment": playing.environment,
    "reward": playing.reward,
    "answer": playing.answer,
    "syntax": playing.syntax_,
    "layout": playing.layout,
    "data": playing.data,
    "engine": playing.engine,
    "rollout": playing.strategy,
    "advantage": learning.advantage,
    "loss": learning.loss,
    "sampler": learning.sampler,
    "metric": watching.metric,
    "tracker": watching.tracker,
    "callback": watching.callback,
}


def check(kind: str, spec: str, options: Mapping[str, Any] | None = None) -> list[Promise]:
    """Every promise of the kind, and whether `spec` with `options` kept it. What a component raises goes through.

    Raises UserError for a kind that is none and for a component that cannot be made.
    """
    if kind not in CHECKS:
        raise UserError(f"unknown kind '{kind}'; {registry.near(kind, ['sandbox', *CHECKS])}")
    return CHECKS[kind](spec, dict(options or {}))
