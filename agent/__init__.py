"""Policies over token ids: engines, the trajectory ledger, rollouts, evaluation."""
