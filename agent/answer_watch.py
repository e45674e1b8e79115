"""Says so, once, when a policy's first episodes hold no answer that could be read: there is nothing to learn from."""

from __future__ import annotations

import warnings

from solostream.agent.trajectory import Trajectory

EPISODES = 32
SHOWN = 1500  # characters of a transcript


class AnswerWatch:
    """Show it every episode. `style`: the environment's answer style."""

    def __init__(self, style: str) -> None:
        self._style, self._seen, self._over = style, 0, False

    def see(self, trajectory: Trajectory) -> None:
        """Count one episode; `infra` ones do not count. Warns once, after `EPISODES` without an answer."""
        if self._over or trajectory.ending == "infra":
            return
        self._seen += 1
        self._over = trajectory.answer is not None or self._seen >= EPISODES
        if trajectory.answer is None and self._seen >= EPISODES:
            warnings.warn(_remark(self._style, trajectory), stacklevel=2)


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
