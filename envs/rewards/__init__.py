"""Rewards: a rubric of named functions, and the grader behind `correct`."""
