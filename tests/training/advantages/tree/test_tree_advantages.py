"""Trees of advantages by hand, and the gradient of a shared beginning, trained in every leaf or once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch

from solostream.agent.exploration.tree import Branch
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.errors import UserError
from solostream.training.advantages import estimator
from solostream.training.advantages.base import Advantages
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.reinforce import Reinforce
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.tree.arpo import ARPOAttribution
from solostream.training.advantages.tree.evidence import observations
from solostream.training.advantages.tree.prefix_once import PrefixOnce
from solostream.training.advantages.tree.segment_po import SegmentPO
from solostream.training.advantages.tree.tree_po import TreePO
from solostream.training.advantages.tree.values import TreeValues
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.batch import Batch
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.learner import Learner

# Two trunks with a branch each. A ledger: prompt 0:3, a turn 3:7, an observation 7:9, 9:12, 12:14, 14:19.
PLACES = {
    0: ((0,), ()),
    1: ((0, 1), (9,)),
    2: ((2,), ()),
    3: ((2, 3), (9,)),
}


def leaf(
    number: int, reward: float, places=None, *, tree: int = 0, group: int | None = 0, value: float = 0.5
) -> Trajectory:
    """Tokens tell which leaf sampled them, and where: a token that two ledgers share is the same in both."""
    path, forks = (places or PLACES)[number]
    branch = Branch(tree, len(places or PLACES), path, forks)
    record = TokenRecord()
    record.add_observation("user", [1, 2, 3], "question")
    for start, end in ((3, 7), (9, 12), (14, 19)):
        ids = [10 + 7 * branch.owner(at) % 50 + at % 5 for at in range(start, end)]
        logprobs = [-0.05 - 0.3 * ((branch.owner(at) + at) % 4) for at in range(start, end)]
        record.add_action(ids, logprobs, [0] * len(ids), "turn")
        if end < 19:
            record.add_observation("tool", [4, 5], "output")
    return record.close("t", reward, "answered", dispatch=Dispatch(tree + number, value, 0, group), branch=branch)


def batch(*rewards: float, places=None, **given) -> Batch:
    return Batch(leaf(i, r, places, **given) for i, r in enumerate(rewards))


def stretches(values: np.ndarray) -> list[float]:
    """The numbers along a leaf, each once for a run of equal ones."""
    return [float(v) for i, v in enumerate(values) if i == 0 or abs(v - values[i - 1]) > 1e-12]


def test_the_worked_numbers_of_a_tree() -> None:
    """Leaves 1, 1 under a and 0, 1 under b: V = 0.75, V(a) = 1, V(b) = 0.5."""
    values = TreeValues(Reinforce(), root="tree")(batch(1, 1, 0, 1)).values
    assert [stretches(v) for v in values] == [
        pytest.approx([0.25, 0]),
        pytest.approx([0.25, 0]),
        pytest.approx([-0.25, -0.5]),
        pytest.approx([-0.25, 0.5]),
    ]
    assert [len(v) for v in values] == [12] * 4
    assert values[2][:4].tolist() == [-0.25] * 4  # the first turn; the fork is behind the observation that follows it
    assert values[2][4:].tolist() == [-0.5] * 8


def test_the_first_stretch_is_compared_with_the_estimators_baseline() -> None:
    """SPO's v = 0.25, scale 1 (centred): the leaves' advantages are 0.25 apart from the mean 0.75 − 0.25."""
    tracker = ValueTracker()
    values = TreeValues(SPO(tracker, scale="centred"))(batch(1, 1, 0, 1, value=0.25)).values
    assert stretches(values[2]) == pytest.approx([-0.25, -0.5])  # the batch's mean is taken off before
    values = TreeValues(Reinforce())(batch(1, 1, 0, 1)).values
    assert stretches(values[2]) == pytest.approx([0.5, -0.5])  # raw rewards: V(b) itself, then 0 − V(b)


@pytest.mark.parametrize("root", ["baseline", "tree"])
def test_along_a_leaf_the_numbers_telescope(root) -> None:
    """A deeper tree on no symmetry: the sum over a leaf's nodes is its own advantage, less the root's."""
    places = {0: ((0,), ()), 1: ((0, 1), (9,)), 2: ((0, 1, 2), (9, 14)), 3: ((3,), ()), 4: ((3, 4), (14,))}
    rewards = (0.9, 0.1, 0.6, 0.25, 0.4)
    values = TreeValues(Reinforce(), root=root)(batch(*rewards, places=places)).values
    top = sum(rewards) / 5 if root == "tree" else 0.0
    for got, r in zip(values, rewards, strict=True):
        assert sum(stretches(got)) == pytest.approx(r - top)
    # leaf 2: everything of trunk 0 (0.5333), then what 1 and 2 share (0.35), then itself (0.6)
    assert stretches(values[2]) == pytest.approx([1.6 / 3 - top, 0.35 - 1.6 / 3, 0.25])


def test_arpo_hard_is_the_mean_of_the_leaves_and_soft_is_the_leafs_own() -> None:
    soft = ARPOAttribution(GRPO(), attribution="soft")(batch(1, 1, 0, 1)).values
    hard = ARPOAttribution(GRPO())(batch(1, 1, 0, 1)).values
    low, high = -1.5, 0.5  # (0 − 0.75)/0.5 and (1 − 0.75)/0.5
    assert [stretches(v) for v in soft] == [[pytest.approx(x, abs=1e-5)] for x in (high, high, low, high)]
    assert stretches(hard[0]) == [pytest.approx(high, abs=1e-5)]
    assert stretches(hard[2]) == pytest.approx([-0.5, low], abs=1e-5)
    assert stretches(hard[3]) == pytest.approx([-0.5, high], abs=1e-5)


def test_tree_po_averages_over_the_subgroups() -> None:
    """Leaf 2: against all −0.75, against its own subtree −0.5, mean −0.625."""
    values = TreePO(Reinforce())(batch(1, 1, 0, 1)).values
    assert [stretches(v) for v in values] == [pytest.approx([x]) for x in (0.125, 0.125, -0.625, 0.375)]


def test_segment_po_masks_what_was_nearly_certain() -> None:
    """exp(−0.05) = 0.951 is masked, exp(−0.35) = 0.705 is not."""
    found = SegmentPO(Reinforce(), root="tree")(batch(1, 1, 0, 1))
    plain = TreeValues(Reinforce(), root="tree")(batch(1, 1, 0, 1)).values
    masked = 0
    for got, unmasked, one in zip(found.values, plain, batch(1, 1, 0, 1), strict=True):
        certain = one.logprobs[one.action_mask] > -0.1
        masked += int(certain.sum())
        assert (got[certain] == 0).all()
        assert got[~certain].tolist() == unmasked[~certain].tolist()
    assert found.metrics["tree/decided"] == pytest.approx(1 - masked / 48)


def gradient(given: Sequence[Trajectory], advantages: Advantages) -> torch.Tensor:
    """Of one update at ratio 1: π_old is the learner's own (`tis_cap` decouples it from the sampler's)."""
    config = LearnerConfig(aggregation="token_mean", tis_cap=1e6)
    learner = Learner(tiny_models.model(), config)
    own = learner.logprobs(given)
    given = [_told(t, logprobs) for t, logprobs in zip(given, own, strict=True)]
    found: list[torch.Tensor] = []
    learner.optimizer.apply = lambda: found.append(  # type: ignore[method-assign]
        torch.cat([p.grad.flatten() for p in learner.optimizer.parameters])
    )
    learner.update(Batch(given), advantages)
    return found[0]


def _told(t: Trajectory, logprobs: np.ndarray) -> Trajectory:
    column = t.logprobs.copy()
    column[t.action_mask] = logprobs
    return replace(t, logprobs=column)


def test_a_beginning_trained_once_has_the_gradient_of_one_trained_in_every_leaf() -> None:
    """To 1e-6 of the gradient's length; soft, hard and once are one sum, and once really trains one copy only."""
    given = batch(1, 0.25, 0, 0.5, places={**PLACES, 1: ((0, 1), (9,)), 3: ((2, 3), (14,))})
    soft, hard, once = GRPO(), ARPOAttribution(GRPO()), PrefixOnce(GRPO())
    gradients = [gradient(given, stage(given)) for stage in (soft, hard, once)]
    length = gradients[0].norm()
    assert length > 1e-3
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / length) < 1e-6
    values = once(given).values
    assert (values[1][:4] == 0).all()
    assert (values[3][:7] == 0).all()
    assert values[2][:7].tolist() == pytest.approx((soft(given).values[2][:7] + soft(given).values[3][:7]).tolist())
    assert values[0][4:].tolist() == soft(given).values[0][4:].tolist()


def folded(number: int, reward: float) -> Trajectory:
    """Three leaves of one trunk whose history is replaced twice, once before they part (at 12) and once behind it, by
    both that part there (at 23)."""
    path, forks = (((0,), ()), ((0, 1), (12,)), ((0, 1, 2), (12, 23)))[number]
    branch, record = Branch(0, 3, path, forks), TokenRecord()

    def said(start: int, n: int) -> None:
        ids = [10 + 7 * branch.owner(at) + at % 5 for at in range(start, start + n)]
        record.add_action(ids, [-1.0] * n, [0] * n, "turn")

    record.add_observation("user", [1, 2, 3], "question")
    said(3, 4)
    record.fold([0])
    record.add_observation("tool", [4, 5], "output")
    said(12, 3)
    record.fold([0, 2])
    record.add_observation("tool", [6, 7], "output")
    said(23, 5)
    return record.close("t", reward, "answered", dispatch=Dispatch(number, 0.5, 0, 0), branch=branch)


def test_a_beginning_whose_history_was_replaced_is_trained_once_as_well() -> None:
    """What a later segment repeats was not sampled there; the gradient is that of training every copy."""
    given = Batch(folded(i, r) for i, r in enumerate((1.0, 0.25, 0.0)))
    assert [t.segments for t in given] == [((0, 7), (7, 15), (15, 28))] * 3
    every, once = GRPO(), PrefixOnce(GRPO())
    one, other = gradient(given, every(given)), gradient(given, once(given))
    assert one.norm() > 1e-3
    assert float((one - other).norm() / one.norm()) < 1e-6
    values, plain = once(given).values, [float(v[0]) for v in every(given).values]
    assert values[0][:4].tolist() == pytest.approx([sum(plain)] * 4, abs=1e-12)
    assert values[1].tolist() == pytest.approx([0] * 4 + [plain[1] + plain[2]] * 3 + [plain[1]] * 5)
    assert values[2].tolist() == pytest.approx([0] * 7 + [plain[2]] * 5)


def test_a_filtered_leaf_leaves_its_beginning_to_the_others() -> None:
    given = Batch(list(batch(1, 0.8, 0, 1)), [False, True, True, True])
    values = PrefixOnce(TreeValues(Reinforce(), root="tree"))(given).values
    assert (values[0] == 0).all()
    # Leaf 1 is the only one below its nodes now, and V is over those that are left: 0.8 − (0.8 + 0 + 1)/3.
    assert values[1].tolist() == pytest.approx([0.2] * 12)
    assert values[2][:4].tolist() == pytest.approx([2 * (0.5 - 0.6)] * 4)


def test_a_tree_counts_every_leaf_once_in_one_observation_a_trunk() -> None:
    places = {0: ((0,), ()), 1: ((0, 1), (9,)), 2: ((0, 1, 2), (9, 14)), 3: ((3,), ())}
    grown = batch(1, 0, 0, 0.5, places=places, value=0.4)
    single = [leaf(0, 1.0, {0: ((0,), ())}, tree=9)]
    alone = Batch([*grown, *(_without(t) for t in single)])
    assert observations(alone, [t.reward for t in alone]) == [(0, pytest.approx(1 / 3)), (3, 0.5), (4, 1.0)]
    tracker, by_hand = ValueTracker(), ValueTracker()
    SPO(tracker)(alone)
    for event, outcome in ((0, 1 / 3), (3, 0.5), (9, 1.0)):
        by_hand.observe("t", outcome, event=event, version=0)
    assert tracker.evidence("t") == pytest.approx(by_hand.evidence("t"))


def _without(t: Trajectory) -> Trajectory:
    return replace(t, branch=None)


@pytest.mark.parametrize("name", ["tree_values", "arpo_attribution", "tree_po", "segment_po", "prefix_once"])
@pytest.mark.parametrize("advantage", ["spo", "grpo", "dr_grpo", "none", "reinforce_pp", "opo"])
def test_every_stage_combines_with_every_estimator_that_may(name: str, advantage: str) -> None:
    chain = estimator(advantage, ("aspo", name), {}, ValueTracker(), lambda given: [])
    given = batch(1, 0.25, 0, 0.5)
    got = chain[-1](given)
    assert all(np.isfinite(v).all() for v in got.values)
    assert any((v != 0).any() for v in got.values)
    # what the estimators inside tell is handed on
    plain = estimator(advantage, ("aspo",), {}, ValueTracker(), lambda given: [])[-1](given).metrics
    assert plain.keys() <= got.metrics.keys()
    assert {"aspo/shaped", "advantage/mean"} <= got.metrics.keys()


def test_evidence_comes_in_the_order_of_the_dispatches() -> None:
    """A batch has its trees as they landed: the later one first, and the second leaf of a trunk before the first."""
    later = [leaf(i, r, tree=20) for i, r in ((1, 0.25), (0, 1.0))]
    first = [leaf(i, r, tree=5) for i, r in ((3, 0.5), (2, 0.9))]
    given = Batch([*later, *first])
    assert observations(given, [t.reward for t in given]) == [(3, pytest.approx(0.7)), (1, pytest.approx(0.625))]


def test_without_a_tree_a_stage_says_what_to_set() -> None:
    with pytest.raises(UserError, match=r"rollout\.strategy"):
        TreeValues(Reinforce())(Batch([_without(leaf(0, 1.0))]))
