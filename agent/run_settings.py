"""How a policy was run_settings while it was trained: `solostream.json` beside its weights, written by training.

`solostream eval` and `chat` go by it wherever the command line says nothing: what a policy can do shows only under the
prompt, the limits and the observations that it learnt with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from solostream.envs.making import specification
from solostream.errors import UserError

FILE = "solostream.json"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """As the held-out evaluation of the run `run` plays: its problems are `env_options["tasks"]`.

    turn_tokens: of one turn. max_tokens: of an episode, prompt included. chat_template_kwargs, date: of the template.
    rollout, rollout_options: the strategy by which the run plays, where it holds outside of training, too.
    """

    run: str
    env: str
    env_options: Mapping[str, Any]
    temperature: float
    top_p: float
    top_k: int
    turn_tokens: int
    max_tokens: int
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    rollout: str | None = None
    rollout_options: Mapping[str, Any] = field(default_factory=dict)

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`env_options` with those `given` on top. What was said of the run's sandbox is not said of another."""
        theirs = dict(self.env_options)
        if given.get("sandbox", theirs.get("sandbox")) != theirs.get("sandbox"):
            theirs.pop("sandbox_options", None)
        return {**theirs, **given}

    def write(self, folder: Path) -> None:
        """Write the settings as JSON into `folder`, where `run_settings` finds them."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        sampling = f"temperature {self.temperature:g}, top-p {self.top_p:g}, top-k {self.top_k}"
        tokens = f"{self.turn_tokens} tokens a turn, {self.max_tokens} an episode"
        return f"settings of the run {self.run}: {self.env} {json.dumps(self.env_options)}, {sampling}, {tokens}"


def run_settings(model: str) -> RunSettings | None:
    """What is written beside the model PATH or vllm:PATH; None for every other model. Raises UserError."""
    path = Path(model.removeprefix("vllm:"), FILE)
    if not os.path.isfile(path):
        return None
    try:
        return RunSettings(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path} ({error}): remove it and give the settings as options") from None


def registered(env: str) -> Mapping[str, Any]:
    """The settings that an environment ("ns/Name-v0", "package:ns/Name-v0") is registered with. Raises UserError."""
    spec = specification(env)
    return spec.kwargs if spec else {}
