"""What one training step is measured by: pure functions of its trajectories. Names are `group/what`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from solostream.agent.exploration.tree import sampled_once
from solostream.agent.trajectory import Trajectory
from solostream.evaluation.metrics import mean_of
from solostream.training.advantages.credit.entropy import after_tools, of_turns, sampled
from solostream.training.rollouts.collector import oldest_version

Value = float | int | None


def of_batch(batch: Sequence[Trajectory], version: int) -> dict[str, Value]:
    """Reward, accuracy by source, lengths in tokens, turns, staleness in policy versions, tool behaviour.

    `version` is the policy that is about to learn from the batch. None: no case to average over.
    """
    rewards = [t.reward for t in batch]
    stale = [version - oldest_version(t) for t in batch]
    metrics: dict[str, Value] = {
        "reward/mean": mean_of(rewards),
        "reward/accuracy": mean_of([r > 0.5 for r in rewards]),
        **{f"accuracy/{source}": value for source, value in _by_source(batch).items()},
        "length/response_mean": mean_of([t.response_length for t in batch]),
        "length/response_max": max((t.response_length for t in batch), default=None),
        "length/action_tokens": sum(t.n_action_tokens for t in batch),
        "length/turns": mean_of([sum(turn.role == "assistant" for turn in t.turns) for t in batch]),
        "staleness/mean": mean_of(stale),
        "staleness/max": max(stale, default=None),
        "staleness/mixed_versions": mean_of([len(np.unique(t.versions[t.action_mask])) > 1 for t in batch]),
    }
    if any(len(t.segments) > 1 for t in batch):  # a run whose history is never replaced has no such column
        metrics["length/segments"] = mean_of([len(t.segments) for t in batch])
    for ending in ("answered", "void", "turn_limit", "token_limit", "time_limit"):
        metrics[f"ending/{ending}"] = mean_of([t.ending == ending for t in batch])
    return {**metrics, **of_entropy(batch), **of_code(batch), **of_trees(batch)}


def of_entropy(batch: Sequence[Trajectory]) -> dict[str, Value]:
    """−log π of what was sampled, in nats a token, which costs nothing and is the entropy in expectation: the mean over
    turns, and over the first 16 tokens behind each output of a tool.
    """
    turns = [of_turns(sampled(t), t) for t in batch]
    return {
        "entropy/turn": mean_of([float(h) for of_one in turns for h in of_one if not np.isnan(h)]),
        "entropy/after_tool": mean_of([h for t in batch for h in after_tools(t)]),
    }


def of_trees(batch: Sequence[Trajectory]) -> dict[str, Value]:
    """Of episodes that branched: leaves and trunks a tree, forks on the way to a leaf, and the share of action tokens
    that were not sampled again, for other leaves had them. Nothing where none did.
    """
    places = [t.branch for t in batch if t.branch is not None]
    if not places:
        return {}
    trees = {place.tree for place in places}
    tokens = sum(t.n_action_tokens for t in batch)
    return {
        "tree/leaves": len(places) / len(trees),
        "tree/trunks": len({(place.tree, place.trunk) for place in places}) / len(trees),
        "tree/forks": mean_of([len(place.forks) for place in places]),
        "tree/shared": 1 - sampled_once(batch) / max(tokens, 1),
    }


def of_code(batch: Sequence[Trajectory]) -> dict[str, Value]:
    """The behaviours of ASPO (arXiv 2508.19201, Fig. 6); positions in tokens, of the trajectories that have a call."""
    runs = [
        (call, done)
        for t in batch
        for turn in t.turns
        for call, done in zip(turn.calls, turn.executions, strict=True)
        if done is not None
    ]
    return {
        "code/ratio": mean_of([t.first_call_token is not None for t in batch]),
        "code/first_call_token": mean_of([p for t in batch if (p := t.first_call_token) is not None]),
        "code/pass_ratio": mean_of([done.ok for _, done in runs]),
        "code/rounds": len(runs) / max(len(batch), 1),
        "code/lines": mean_of([call.code.count("\n") + 1 for call, _ in runs]),
        "code/void": mean_of([t.void for t in batch]),
    }


def calibration(batch: Sequence[Trajectory], bins: int = 10) -> dict[str, Value]:
    """The tracked values against what came: mean value, Brier score, expected calibration error."""
    pairs = [(t.dispatch.value, t.reward) for t in batch if t.dispatch.value is not None]
    if not pairs:
        return {}
    values, rewards = np.asarray(pairs, np.float64).T
    cell = np.minimum((values * bins).astype(int), bins - 1)
    error = sum(abs(values[cell == b].mean() - rewards[cell == b].mean()) * (cell == b).mean() for b in np.unique(cell))
    return {
        "tracker/value": float(values.mean()),
        "tracker/brier": float(((rewards - values) ** 2).mean()),
        "tracker/calibration_error": float(error),
    }


def changes(now: Mapping[str, int], before: Mapping[str, int], names: Sequence[str]) -> dict[str, Value]:
    """Counters of the pipeline as what this step added."""
    return {f"filter/{name}": now.get(name, 0) - before.get(name, 0) for name in names}


def _by_source(batch: Sequence[Trajectory]) -> dict[str, float | None]:
    sources: dict[str, list[float]] = defaultdict(list)
    for t in batch:
        sources[t.source or "all"].append(t.reward > 0.5)
    return {source: mean_of(solved) for source, solved in sorted(sources.items())}
