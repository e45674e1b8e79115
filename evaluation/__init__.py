"""Samples to metrics with intervals: evaluations, comparisons, how a policy uses its tools."""

from solostream.evaluation.majority import majority_vote
from solostream.evaluation.metrics import average, pass_at_k

__all__ = ["average", "majority_vote", "pass_at_k"]
