"""Says so, once each: a prompt that leaves the policy no token, and first episodes without an answer to read."""

from __future__ import annotations

import warnings

from solostream.agent.trajectory import Trajectory

EPISODES = 32
SHOWN = 1500  # characters of a transcript


class AnswerWatch:
    """Show it every episode. `style`: the environment's answer style."""

    def __init__(self, style: str) -> None:
        self._style, self._seen, self._over, self._silent = style, 0, False, False

    def see(self, trajectory: Trajectory) -> None:
        """Count one episode; `infra` ones do not count. Warns once of a policy that could not speak, at once; and once
        after `EPISODES` without an answer.
        """
        if trajectory.ending == "infra":
            return
        if not any(turn.role == "assistant" for turn in trajectory.turns):
            if not self._silent:
                warnings.warn(_no_room(trajectory), stacklevel=2)
            self._silent = True
            return
        if self._over:
            return
        self._seen += 1
        self._over = trajectory.answer is not None or self._seen >= EPISODES
        if trajectory.answer is None and self._seen >= EPISODES:
            warnings.warn(_remark(self._style, trajectory), stacklevel=2)


def _no_room(trajectory: Trajectory) -> str:
    return (
        f"the prompt of '{trajectory.task_id}' ({len(trajectory)} {trajectory.unit}) leaves no room for an answer, and "
        "such an episode counts as wrong: raise --max-tokens or the context of the endpoint, or show fewer examples "
        "(few_shot)"
    )


def _remark(style: str, trajectory: Trajectory) -> str:
    text = "\n".join(f"[{turn.role}] {turn.text.strip()}" for turn in trajectory.turns)
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]}\n… {len(text) - SHOWN} characters …\n{text[-SHOWN // 2 :]}"
    cure = "answer = 'auto' also takes a tag, \"the answer is …\" and the last number" if style != "auto" else ""
    shows = "few_shot = 2 shows a small or a base model how"
    ways = "; ".join(filter(None, (shows, cure, "system_prompt says how to answer", "turn_tokens must leave room")))
    return (
        f"none of the first {EPISODES} episodes holds an answer of the style '{style}', so none can be rewarded. "
        f"In [env.options] (or --env-options): {ways}. The last of them, which ended as {trajectory.ending}:\n{text}"
    )
