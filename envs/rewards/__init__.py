"""Rewards: a rubric of named functions of a finished episode; the grader behind `correct`; judges; code tests."""

from solostream.envs.rewards.calls import failed_rewards, failures
from solostream.envs.rewards.episode import Episode, RewardError, Score
from solostream.envs.rewards.grading import Rules, Verdict, agrade, equivalent, grade
from solostream.envs.rewards.rubric import Rubric

__all__ = [
    "Episode",
    "RewardError",
    "Rubric",
    "Rules",
    "Score",
    "Verdict",
    "agrade",
    "equivalent",
    "failed_rewards",
    "failures",
    "grade",
]
