"""Divergence "rescore": both sides are the learner's, and what a run keeps of a task is small and exact."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from tiny_ledgers import trajectory

from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.stream.rescoring import Rescoring, Scored
from solostream.training.advantages.value_tracker import ValueTracker


class Policy:
    """A learner: −1 − .013·id of a token, plus `travel` times what the token's id gains."""

    def __init__(self) -> None:
        self.travel = 0.0
        self.asked: list[list[list[int]]] = []  # of each call, the action tokens of each trajectory

    def gain(self, ids: np.ndarray) -> np.ndarray:
        return np.array([0.0, -0.01, 0.02, -0.09, 0.04, 0.013, -0.37])[ids % 7]

    def __call__(self, batch: list[Trajectory]) -> list[np.ndarray]:
        actions = [t.token_ids[t.action_mask] for t in batch]
        self.asked.append([ids.tolist() for ids in actions])
        return [(-1 - 0.013 * ids + self.travel * self.gain(ids)).astype(np.float32) for ids in actions]


def rescored(policy: Policy, *bounds: float) -> SPO:
    return SPO(ValueTracker(*bounds), divergence="rescore", logprobs=policy)


def test_a_sampler_that_differs_moves_no_policy() -> None:
    """68 visits at rho_max, however far the sampler is off: n = 25 − 24·.96^68, where noise once made it 8."""
    rng = np.random.default_rng(3)
    states = []
    for sigma in (0.0, 0.03, 0.4):
        spo = rescored(Policy())
        for step in range(68):
            ids = rng.integers(0, 500, 11)
            noisy = -1 - 0.013 * ids + sigma * rng.normal(size=11)
            spo([trajectory("a", step % 3 / 2, response=ids, logprobs=noisy, event=step, version=step)])
        states.append(spo.tracker.state_dict())
        assert sum(spo.tracker.evidence("a")) == pytest.approx(25 - 24 * 0.96**68)
    assert states[0] == states[1] == states[2]
    assert {event[2] for event in states[0]["beliefs"]["a"]["events"]} == {0.0}


def test_a_learner_that_moves_is_measured_on_the_last_trajectory() -> None:
    """Its tokens 1 to 4 gain −.01, .02, −.09 and .04: D = .04 whatever the sampler said, ρ = 2^(−2/3)."""
    policy, expected = Policy(), ValueTracker(0.5, 0.99)
    spo = rescored(policy, 0.5, 0.99)
    spo([trajectory("a", 1, response=[1, 2, 3, 4], logprobs=[-7.0, -0.2, -3.0, -1.1], event=0, version=0)])
    policy.travel = 1.0
    spo([trajectory("b", 1, response=[6], event=1, version=3), trajectory("a", 0, response=[5, 6], event=2, version=3)])
    # The first has nothing before it; the earlier trajectory and those of the batch go through the model together.
    assert policy.asked == [[[1, 2, 3, 4]], [[1, 2, 3, 4], [6], [5, 6]]]
    expected.observe("a", 1, 0.0, event=0)
    expected.observe("a", 0, 0.04, event=2)
    assert spo.tracker.evidence("a") == pytest.approx(expected.evidence("a"), rel=1e-6)
    # From there the next step is measured on [5, 6]: |−.013| and |.37|, twice.
    policy.travel = 3.0
    spo([trajectory("a", 1, response=[1], event=3, version=4)])
    expected.observe("a", 1, 2 * (0.013 + 0.37) / 2, event=3)
    assert spo.tracker.evidence("a") == pytest.approx(expected.evidence("a"), rel=1e-6)


def test_travel_counts_once_in_a_batch_and_by_another_policy() -> None:
    policy = Policy()
    rescoring = Rescoring(policy)
    assert rescoring.divergences(
        [trajectory("a", response=[3], version=1), trajectory("a", response=[2], version=2)]
    ) == [0, 0]
    policy.travel = 1.0
    late, first, second = (trajectory("a", response=[i], version=v) for i, v in ((6, 2), (4, 3), (1, 4)))
    assert rescoring.divergences([late, first, second]) == pytest.approx([0, 0.02, 0], abs=1e-6)
    assert policy.asked[-1] == [[2], [1]]  # what stays, the last by dispatch, and no other
    policy.travel = 5.0
    assert rescoring.divergences([late, first]) == pytest.approx([4 * 0.01, 0], abs=1e-6)


def test_the_same_policy_in_a_later_batch_leaves_what_was_scored_nearer_to_it() -> None:
    policy = Policy()
    rescoring = Rescoring(policy)
    rescoring.divergences([trajectory("a", response=[2], version=5)])
    policy.travel = 1.0
    assert rescoring.divergences([trajectory("a", response=[3], version=5)]) == [0.0]
    assert len(policy.asked) == 1
    policy.travel = 2.0
    assert rescoring.divergences([trajectory("a", version=6)]) == pytest.approx([2 * 0.02], abs=1e-6)


def test_a_trajectory_that_says_nothing_leaves_the_one_before_it_and_loses_no_travel() -> None:
    policy = Policy()
    rescoring = Rescoring(policy)
    silent = [trajectory("a", response=[], version=v) for v in range(4)]
    assert rescoring.divergences(silent[:1]) == [0.0]
    assert policy.asked == []
    rescoring.divergences([trajectory("a", response=[2], version=1)])
    policy.travel = 1.5
    assert rescoring.divergences([silent[2]]) == pytest.approx([1.5 * 0.02], abs=1e-6)
    policy.travel = 2.0
    assert rescoring.divergences([silent[2]]) == [0.0]
    assert rescoring.divergences([trajectory("a", response=[6], version=3)]) == pytest.approx([0.5 * 0.02], abs=1e-6)


def test_a_resumed_run_has_the_evidence_of_an_uninterrupted_one() -> None:
    rng = random.Random(8)
    batches = [
        [
            trajectory(
                rng.choice("abcd"),
                rng.random(),
                prompt=range(rng.randint(1, 9)),
                response=[rng.randrange(150_000) for _ in range(rng.randint(0, 13))],
                event=5 * step + i,
                version=step,
            )
            for i in range(5)
        ]
        for step in range(12)
    ]
    whole, cut = Policy(), Policy()
    one, two = rescored(whole, 0.3, 0.99), rescored(cut, 0.3, 0.99)
    for step, batch in enumerate(batches):
        whole.travel = cut.travel = 0.31 * step**0.7
        one(batch)
        two(batch)
        saved = json.loads(json.dumps([two.state_dict(), two.tracker.state_dict()]))
        two = rescored(cut, 0.3, 0.99)
        two.load_state_dict(saved[0])
        two.tracker.load_state_dict(saved[1])
    assert two.tracker.state_dict() == one.tracker.state_dict()
    assert two.state_dict() == one.state_dict()
    assert any(event[2] for belief in saved[1]["beliefs"].values() for event in belief["events"])


def folded() -> Trajectory:
    ledger = TokenRecord()
    ledger.add_observation("user", [3, 9, 4], "q")
    ledger.add_action([5, 8, 13], [-1.0] * 3, [0] * 3, "a")
    ledger.add_observation("tool", [21, 2], "o")
    ledger.fold([0, 2])
    ledger.add_action([150_000, 1], [-1.0] * 2, [0] * 2, "a")
    ledger.fold([0])
    ledger.add_action([40], [-1.0], [0], "a")
    return ledger.close("t", 1.0, "answered")


@pytest.mark.parametrize("one", [folded(), trajectory(response=[7]), trajectory(prompt=range(9), response=range(7))])
def test_what_is_kept_is_scored_as_the_whole(one: Trajectory) -> None:
    then = np.random.default_rng(1).normal(size=one.n_action_tokens).astype(np.float32)
    kept = Scored.from_dict(json.loads(json.dumps(Scored.of(one, 6, then).to_dict())))
    again = kept.trajectory("t")
    assert (again.task_id, kept.version, again.segments) == ("t", 6, one.segments)
    assert again.token_ids.tolist() == one.token_ids.tolist()
    assert again.action_mask.tolist() == one.action_mask.tolist()
    assert kept.logprobs.tobytes() == then.tobytes()


def test_a_state_is_at_most_11_bytes_a_token() -> None:
    """All of them actions, as no trajectory is; texts of turns are not in it."""
    rescoring = Rescoring(Policy())
    ids = np.random.default_rng(2).integers(0, 150_000, (3, 6000))
    rescoring.divergences([trajectory(f"t{i}", prompt=[1], response=row) for i, row in enumerate(ids)])
    saved = json.dumps(rescoring.state_dict())
    assert len(saved) <= 11 * ids.size
    assert "answer" not in saved
