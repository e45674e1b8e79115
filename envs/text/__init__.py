"""Text of a policy and for it: parser, answers, observations, prompts, token budgets."""
