"""Credit inside a trajectory: stages (and a few estimators) that weigh turns and tokens apart, one file each.

`steps` says what a turn is as a step of a decision process, `entropy` how uncertain the policy was in it.
"""
