r"""The built-in rewards of an answer and of its calls. Judges and code tests have files of their own.

OTC-PO (arXiv 2504.14870), `otc`: correctness times a tool reward that falls with the number m of calls. With one stream
a problem (their OTC-PPO): `cos(m·π / (2m + c))`; their smoothing constant c is here the most turns an episode may take.
When the fewest calls n that solved the problem are known (their OTC-GRPO): with `f = 2nm/(m + n)`, the reward is 1 at
m = n = 0, `cos(m·π / (2m + c))` at n = 0 < m, else `sin(f·π / (2n))`, which peaks at m = n. `n` is read from the task's
`meta["min_calls"]`. Their factor α is the rubric's weight.
"""

from __future__ import annotations

import math
from functools import lru_cache

from solostream.envs.rewards.calls import RewardCall, shared_call
from solostream.envs.rewards.episode import Episode, Score
from solostream.envs.rewards.grading import agrade


async def correct(episode: Episode) -> Score:
    """1 when the final answer is one of the task's accepted answers, else 0; with the rule that decided.

    A task with a verifier of its own (`meta["scorer"]`, a reward's name) has that one's score.
    """
    if episode.answer is None:
        return Score(0.0, "no answer")
    if scorer := episode.task.meta.get("scorer"):
        return await _own_verifier(str(scorer))(episode, None)
    verdict = await agrade(episode.task.accepted, episode.answer, episode.rules)
    return Score(float(verdict.equal), verdict.rule)


@lru_cache(maxsize=16)
def _own_verifier(name: str) -> RewardCall:
    """Kept: what it has opened, it opens once."""
    return shared_call(name, {}, {})


async def answered(episode: Episode) -> float:
    """1 when there is a final answer, right or wrong."""
    return float(episode.answer is not None)


async def well_formed(episode: Episode) -> float:
    """1 when no call was malformed or left open and no turn was void."""
    return float(not any(s.void or any(call.status != "ok" for call in s.calls) for s in episode.steps))


async def code_passes(episode: Episode) -> float:
    """Share of the executed calls that ended without an error; 1 without calls."""
    done = [execution.ok for step in episode.steps for execution in step.executions if execution is not None]
    return sum(done) / len(done) if done else 1.0


def otc_tool_reward(calls: int, c: int, fewest: int | None = None) -> float:
    """OTC-PO's factor in [0, 1]; `fewest` (n) None is their single-stream form."""
    if not fewest:
        if calls == 0:
            return 1.0
        return math.cos(calls * math.pi / (2 * calls + c))
    return math.sin(2 * fewest * calls / (calls + fewest) * math.pi / (2 * fewest))


async def otc(episode: Episode) -> Score:
    """Correctness times `otc_tool_reward`."""
    fewest = episode.task.meta.get("min_calls")
    right = await correct(episode)
    tools = otc_tool_reward(episode.n_calls, episode.max_turns, fewest and int(fewest))
    return Score(right.value * tools, f"{right.why}; {episode.n_calls} calls")
