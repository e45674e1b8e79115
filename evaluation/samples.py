"""What the metrics need of recorded trajectories."""

from __future__ import annotations

from pathlib import Path

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import find_file, read_lines
from solostream.errors import UserError
from solostream.evaluation.metrics import Sample
from solostream.evaluation.tool_use import observe


def reduce(trajectory: Trajectory) -> Sample:
    """What the metrics need of a trajectory."""
    return Sample(
        trajectory.task_id,
        trajectory.reward,
        trajectory.answer,
        trajectory.ending,
        observe(trajectory),
        trajectory.unit,
        trajectory.usage,
    )


def read_samples(place: Path) -> tuple[list[Sample], list[str]]:
    """All samples of a run or evaluation, and one complaint a damaged line. Raises UserError when there are none."""
    path = find_file(place)
    samples, damage = [], []
    for line in read_lines(path):
        if line.trajectory is not None:
            samples.append(reduce(line.trajectory))
        elif line.damage is not None:
            damage.append(f"{path.name}:{line.number + 1}: {line.damage}")
    if not samples:
        why = f"all {len(damage)} lines are damaged, the first: {damage[0]}" if damage else "it has no whole line"
        raise UserError(f"{path} holds no complete trajectory: {why}")
    return samples, damage
