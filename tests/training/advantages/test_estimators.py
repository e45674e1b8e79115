"""SPO, ASPO and the baselines on trajectories: hand-computed values, order, state, refusals."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from tiny_ledgers import one_each, trajectory

from solostream import registry
from solostream.errors import UserError
from solostream.training.advantages import estimator, grouping
from solostream.training.advantages.aspo import ASPO
from solostream.training.advantages.base import Advantage, Advantages, standardize
from solostream.training.advantages.grpo import GRPO
from solostream.training.advantages.reinforce import OPO, Reinforce, ReinforcePlusPlus
from solostream.training.advantages.rloo import RLOO
from solostream.training.advantages.spo import SPO
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.config import validate


def group(rewards: list[float], lengths: list[int] | None = None, number: int | None = 0) -> list:
    lengths = lengths or [4] * len(rewards)
    return [
        trajectory(f"t{i}", r, response=range(n), group=number, event=i)
        for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))
    ]


def test_spo_reads_the_frozen_value_not_the_tracker() -> None:
    tracker = ValueTracker()
    tracker.initialize("a", [1] * 8)  # 0.944 by now; dispatched when it was 0.25
    batch = [
        trajectory("a", 1, value=0.25, response=range(10), event=1),
        trajectory("b", 0, value=0.5, response=range(30), event=2),
    ]
    got = SPO(tracker)(batch)
    assert one_each(got) == pytest.approx(standardize([0.75, -0.5], [10, 30]))
    assert got.metrics["advantage/mean"] == pytest.approx(0.125)
    assert got.metrics["tracker/brier"] == pytest.approx((0.75**2 + 0.5**2) / 2)
    assert one_each(SPO(ValueTracker(), "trajectory")(batch)) == pytest.approx([1.0, -1.0])


def test_spo_near_zero_share() -> None:
    """Of what is centred, as the loss sees it: residuals .01, .03 and .37 of six, two and five tokens."""
    batch = [
        trajectory("a", 1, value=0.99, response=range(6), event=0),
        trajectory("b", 1, value=0.97, response=range(2), event=1),
        trajectory("c", 1, value=0.63, response=range(5), event=2),
    ]
    near = lambda **options: SPO(ValueTracker(), **options)(batch).metrics["advantage/near_zero"]
    assert near(scale="none") == pytest.approx(1 / 3)  # r - v as it is
    assert near() == 0  # less their mean of .151
    batch[2] = trajectory("c", 1, value=0.96, response=range(5), event=2)
    assert near() == 1


def test_spo_a_wrong_answer_has_a_signal_where_the_value_is_not_believed() -> None:
    """A slope of 0 leaves r, which is 0 for it; centred it is the loudest of the batch."""
    batch = [trajectory(task, r, value=0.5, event=e) for e, (task, r) in enumerate([("a", 1), ("b", 1), ("c", 0)])]
    estimator = SPO(ValueTracker(), slope="fitted")
    assert estimator(batch).metrics["advantage/near_zero"] == 0
    assert one_each(SPO(ValueTracker(), slope="fitted")(batch))[2] < -1


def test_spo_duplicates_enter_in_event_order_not_batch_order() -> None:
    by_batch, by_event = ValueTracker(), ValueTracker()
    rewards = [0, 1, 1]
    batch = [trajectory("a", r, event=e) for e, r in enumerate(rewards)]
    SPO(by_batch)([batch[2], batch[0], batch[1]])
    for event, reward in enumerate(rewards):
        by_event.observe("a", reward, event=event, version=0)
    assert by_batch.state_dict() == by_event.state_dict()


def test_spo_over_any_cut_and_order_of_batches_leaves_one_tracker() -> None:
    rng = random.Random(5)
    events = [trajectory(rng.choice("abc"), rng.randint(0, 1), event=e, version=e // 4) for e in range(30)]

    def run(order: list[int], size: int) -> dict:
        tracker = ValueTracker()
        for version in range(1, 10):
            tracker.record_drift(version, 0.01)
        spo = SPO(tracker)
        for start in range(0, len(order), size):
            spo([events[i] for i in order[start : start + size]])
        return tracker.state_dict()

    order = list(range(30))
    expected = run(order, 5)
    rng.shuffle(order)
    assert {k: expected["beliefs"][k] for k in "abc"} == {k: run(order, 7)["beliefs"][k] for k in "abc"}


def test_spo_needs_the_frozen_value() -> None:
    with pytest.raises(UserError, match="task a was dispatched without a value"):
        SPO(ValueTracker())([trajectory("a", value=None)])


def test_grpo() -> None:
    assert one_each(GRPO(epsilon=0)(group([1, 1, 0, 0]))) == pytest.approx([0.75**0.5] * 2 + [-(0.75**0.5)] * 2)
    assert one_each(GRPO(epsilon=0)(group([1, 0, 0, 0]))) == pytest.approx([1.5, *[-0.5] * 3])
    assert one_each(GRPO(divide=False)(group([1, 0, 0, 0]))) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_groups_do_not_mix_and_degenerate_ones_are_counted() -> None:
    batch = [*group([1, 1], number=1), *group([1, 0], number=2), *group([0, 0], number=3)]
    got = GRPO(divide=False)([batch[i] for i in (0, 2, 4, 1, 3, 5)])
    assert one_each(got) == pytest.approx([0, 0.5, 0, 0, -0.5, 0])
    assert got.metrics["advantage/degenerate"] == pytest.approx(2 / 3)


def test_rloo() -> None:
    assert one_each(RLOO()(group([1, 0, 0, 0]))) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert one_each(RLOO()(group([1]))) == [0]


def test_reinforce_family() -> None:
    batch = group([1, 0, 0, 1], [10, 30, 20, 40], None)
    assert one_each(Reinforce()(batch)) == [1, 0, 0, 1]
    assert one_each(ReinforcePlusPlus()(batch)) == pytest.approx([1, -1, -1, 1])
    assert one_each(OPO()(batch)) == pytest.approx([0.5, -0.5, -0.5, 0.5])  # (10 + 40)/100
    assert one_each(OPO()(group([1, 0], [10, 30]))) == pytest.approx([0.75, -0.25])


def test_opo_compares_within_groups_where_a_prompt_has_several_streams() -> None:
    config = {"rollout": {"batch": 8}}
    for advantage, size, grouped in (("opo", 4, True), ("opo", 1, False), ("spo", 4, False), ("rloo", 4, True)):
        made = validate({**config, "algorithm": {"advantage": advantage, "group_size": size}})
        assert made.algorithm.grouped is grouped


def made(name: str, options: dict | None = None) -> Advantage:
    """The estimator by its name, as a run makes it."""
    return estimator(name, (), {name: options or {}}, ValueTracker(), lambda batch: [])[-1]


COMPARED = ("grpo", "dr_grpo", "rloo", "maxrl", "shrinkage", "optimal_token", "dcpo", "bnpo", "passk")
NAMES = [name for name in registry.names("advantage") if not registry.asks("advantage", name, "inner")]


@pytest.mark.parametrize("name", NAMES)
def test_estimators_that_need_groups_refuse_single_streams(name: str) -> None:
    assert (grouping(made(name)) == "required") is (name in COMPARED)
    if grouping(made(name)) == "required":
        with pytest.raises(UserError, match="has no group"):
            made(name)([trajectory("a")])


@pytest.mark.parametrize("name", NAMES)
def test_every_estimator(name: str) -> None:
    """Finite, deterministic, and a state that makes the round trip; a right answer does better than a wrong one."""
    batch = [trajectory(f"t{i}", i % 2, event=i, group=i // 4, response=range(i + 2)) for i in range(8)]
    options = {"k": 2} if name == "passk" else {}  # of four tries, two right, one is right for sure
    one, two = made(name, options), made(name, options)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    got = one(batch)
    assert [len(values) for values in got.values] == [t.n_action_tokens for t in batch]
    given = [float(values.mean()) for values in got.values]
    assert np.isfinite(given).all()
    assert np.mean(given[1::2]) > np.mean(given[::2])
    again = two(batch)
    assert [values.tolist() for values in again.values] == [values.tolist() for values in got.values]
    assert again.metrics == got.metrics
    assert one.state_dict() == made(name).state_dict() or name in ("spo", "maxrl_stream", "dcpo")


def test_a_stage_stands_around_an_estimator_and_never_alone() -> None:
    with pytest.raises(UserError, match=r"name it in algorithm\.stages"):
        made("aspo")
    with pytest.raises(UserError, match="'grpo' is no stage"):
        estimator("none", ("grpo",), {}, ValueTracker(), lambda batch: [])
    chain = estimator("rloo", ("aspo", "aspo"), {"aspo": {"k": 0.25}}, ValueTracker(), lambda batch: [])
    assert [type(one) for one in chain] == [RLOO, ASPO, ASPO]
    assert chain[2].inner is chain[1]
    assert chain[1].inner is chain[0]
    assert (chain[1].k, chain[1].delta) == (0.25, -2.0)


def test_rescoring_asks_the_learner_only_where_it_is_wanted() -> None:
    asked: list = []

    def logprobs(batch: list) -> list:
        asked.extend(batch)
        return [np.zeros(t.n_action_tokens) for t in batch]

    for divergence, times in (("drift", 0), ("rescore", 3)):
        spo = estimator("spo", (), {"spo": {"divergence": divergence}}, ValueTracker(), logprobs)[-1]
        spo([trajectory("a", 1, event=0)])
        spo([trajectory("a", 0, event=3, version=2)])
        assert len(asked) == times
    with pytest.raises(UserError, match="give SPO the learner's logprobs"):
        SPO(ValueTracker(), divergence="rescore")


def called(task: str, position: int | None, **fields) -> object:
    return trajectory(task, fields.pop("reward", 1.0), response=range(1000), call_at=position, **fields)


def test_aspo_wraps_and_logs() -> None:
    batch = [called("a", 100), called("b", 500), called("c", None), called("d", 0, reward=0.0)]
    got = ASPO(Reinforce(), -2.0, 0.7)(batch)
    assert one_each(got) == pytest.approx([1.4, 0.6, 1.0, 0.0])  # mean p = 300, L = 1000
    assert got.metrics["aspo/shaped"] == 0.5
    assert got.metrics["aspo/clipped"] == 0
    assert ASPO(Reinforce(), -9.0, 0.7)(batch).metrics["aspo/clipped"] == 1
    assert got.metrics["reward/variance"] == pytest.approx(3 / 16)


@pytest.mark.parametrize(("eligible", "moved"), [("code", 3), ("executed", 2), ("passed", 0)])
def test_aspo_eligibility(eligible, moved: int) -> None:
    written_only = called("c", 800)
    turns = (*written_only.turns[:-1], replace(written_only.turns[-1], executions=(None,)))
    batch = [called("a", 100), called("b", 500, passed=False), replace(written_only, turns=turns)]
    values = one_each(ASPO(Reinforce(), eligible=eligible)(batch))
    assert sum(v != 1 for v in values) == moved


def test_aspo_frequent_calls() -> None:
    batch = [called("a", 10, calls=1), called("b", 10, calls=3), called("c", None)]
    got = ASPO(Reinforce(), 0.5, 0.7, signal="calls")(batch)
    assert one_each(got) == pytest.approx([0.75, 1.25, 1.0])  # 0.5 x (1 - 2)/2


def test_aspo_compares_within_groups() -> None:
    batch = [called("a", 100, group=0), called("a", 500, group=0), called("b", 800, group=1), called("b", 800, group=1)]
    got = one_each(ASPO(Reinforce(), compare="group")(batch))
    assert got == pytest.approx([1.4, 0.6, 1, 1])


def test_aspo_running_means_per_task_survive_a_checkpoint() -> None:
    one = ASPO(Reinforce(), compare="running")
    assert one_each(one([called("a", 100), called("b", 900)])) == [1, 1]
    two = ASPO(Reinforce(), compare="running")
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for aspo in (one, two):
        assert one_each(aspo([called("a", 500)])) == pytest.approx([0.6])  # mean p = 300 over both


class ByToken:
    """An estimator that weighs the tokens of a trajectory differently."""

    def __init__(self, values: list[list[float]]) -> None:
        self.values = values

    def __call__(self, batch) -> Advantages:
        return Advantages([np.array(v) for v in self.values])

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...


def test_aspo_moves_each_token_within_its_own_bounds() -> None:
    """p = 1, 3, L = 4: the terms are +0.5 and -0.5, each token of the first may move by 0.7 of its own advantage."""
    batch = [trajectory("a", 1.0, call_at=1), trajectory("b", 1.0, call_at=3)]
    got = ASPO(ByToken([[1.0, 0.5, -1.0, 0.0], [0.9, 2.0, 0.1, 0.3]]), -1.0, 0.7)(batch)
    assert got.values[0].tolist() == pytest.approx([1.25, 0.75, -1.0, 0.0])
    assert got.values[1].tolist() == pytest.approx([0.65, 1.75, 0.03, 0.09])
    assert got.metrics["aspo/shaped"] == 1
    assert got.metrics["aspo/clipped"] == 0


@pytest.mark.parametrize(("signal", "delta"), [("first_call", -2.0), ("calls", 0.5)])
def test_the_configured_signal_is_what_shapes(signal: str, delta: float) -> None:
    """The same batch under either signal: the second trajectory calls later, and more often."""
    batch = [
        trajectory("a", 1.0, response=range(10), call_at=1, calls=1),
        trajectory("b", 1.0, response=range(10), call_at=5, calls=3),
    ]
    settings = {"advantage": "none", "aspo": {"signal": signal, "delta": delta}}
    config = validate({"algorithm": settings})
    got = one_each(config.algorithm.estimator(ValueTracker(), lambda batch: [])[-1](batch))
    expected = one_each(ASPO(Reinforce(), delta, 0.7, signal=signal)(batch))
    assert got == expected
    assert (got[0] > got[1]) is (signal == "first_call")
