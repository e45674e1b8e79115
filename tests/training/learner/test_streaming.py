"""A batch that is learnt in parts moves the policy as the whole batch does, and only what can judge a part may try."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from test_gradients import AGGREGATIONS, a_batch
from tiny_ledgers import trajectory

from solostream import registry
from solostream.errors import UserError
from solostream.training.advantages import ASPO, GRPO, RLOO, SPO, Advantages, ValueTracker
from solostream.training.advantages.credit.d3s import D3S
from solostream.training.advantages.credit.dcpo import DCPO
from solostream.training.advantages.credit.empg import EMPG
from solostream.training.advantages.credit.gigpo import GiGPO
from solostream.training.advantages.credit.salt import SALT
from solostream.training.advantages.credit.seed import SEED
from solostream.training.advantages.maxrl import MaxRL, MaxRLStream
from solostream.training.advantages.reinforce import OPO, Reinforce, ReinforcePlusPlus
from solostream.training.advantages.stages.negative_weight import NegativeWeight
from solostream.training.batch import Batch
from solostream.training.config import validate
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.corrections import kept
from solostream.training.learner.guards import NotFinite
from solostream.training.learner.learner import Learner
from solostream.training.learner.streaming import StreamedUpdate, check_in_parts

CUTS = [2, 1, 5, 4]  # of twelve


class Given:
    """Advantages by task, whatever they come with."""

    in_parts = True

    def __init__(self, batch, advantages: Advantages) -> None:
        self._of = {t.task_id: values for t, values in zip(batch, advantages.values, strict=True)}

    def __call__(self, batch: Batch) -> Advantages:
        return Advantages([self._of[t.task_id] for t in batch], {"mean": float(len(batch))})


def watched(config: LearnerConfig) -> tuple[Learner, list[torch.Tensor]]:
    """Its gradients, caught before each step."""
    learner = Learner(tiny_models.model(), config)
    found: list[torch.Tensor] = []
    step = learner.optimizer.apply

    def apply() -> None:
        found.append(torch.cat([p.grad.flatten() for p in learner.optimizer.parameters]))
        step()

    learner.optimizer.apply = apply  # type: ignore[method-assign]
    return learner, found


@pytest.mark.parametrize("settings", [{}, {"tis_cap": 1.3}, {"kl_coef": 0.2, "entropy_coef": 0.01, "drop_void": True}])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_gradient_is_that_of_the_whole_batch(aggregation: str, settings: dict) -> None:
    config = LearnerConfig(aggregation=aggregation, length_norm=7, max_tokens_per_batch=50, grad_clip=0.3, **settings)
    batch, advantages = a_batch(tiny_models.model())
    batch[3] = trajectory("t3", 1.0, response=list(range(len(advantages.values[3]))), void=True)
    whole, expected = watched(config)
    keep = kept(batch, config)[0]
    numbers = whole.update(Batch(batch, keep), advantages, version=0)

    parted, found = watched(config)
    streamed, first = StreamedUpdate(parted, Given(batch, advantages), len(batch)), 0
    for cut in CUTS:
        streamed.add(Batch(batch[first : first + cut], keep[first : first + cut]))
        first += cut
    again, values, told = streamed.finish(0, drift=True)
    assert len(found) == len(expected) == 1
    assert (found[0] - expected[0]).abs().max() <= 1e-6 * max(1.0, float(expected[0].abs().max()))
    assert [t.task_id for t in again] == [t.task_id for t in batch]
    assert all(np.array_equal(a, b) for a, b in zip(values.values, advantages.values, strict=True))
    assert values.metrics == {"mean": 3.0}
    for name in set(numbers) - {"tokens_per_s"}:
        assert told[name] == pytest.approx(numbers[name], rel=2e-5, abs=1e-7), name
    assert told.keys() == numbers.keys()


@pytest.mark.parametrize(
    "estimator",
    [
        lambda tracker: SPO(tracker, scale="none"),
        lambda tracker: NegativeWeight(SPO(tracker, scale="none"), 0.5),
        lambda tracker: MaxRLStream(tracker),
        lambda tracker: GRPO(),
        lambda tracker: RLOO(),
        lambda tracker: MaxRL(),
        lambda tracker: Reinforce(),
        lambda tracker: ASPO(RLOO(), compare="group"),
        lambda tracker: SALT(GRPO()),
        lambda tracker: GiGPO(SPO(tracker, scale="none"), divide=False),
        lambda tracker: SEED(RLOO()),
        lambda tracker: DCPO(),
    ],
)
def test_who_says_so_gives_parts_what_it_gives_the_whole(estimator) -> None:
    rng = np.random.default_rng(5)
    rewards = rng.random(12).round(2)
    batch = [
        trajectory(
            f"t{i // 3}", rewards[i], event=20 - i, value=0.3 + i / 40, group=i // 3, call_at=i % 3, version=i % 2
        )
        for i in range(12)
    ]
    one, two = ValueTracker(), ValueTracker()
    whole, parts = estimator(one), estimator(two)
    check_in_parts(parts, LearnerConfig(), registry.make("loss", "ppo_clip"))
    expected = whole(Batch(batch)).values
    found = [values for first in range(0, 12, 3) for values in parts(Batch(batch[first : first + 3])).values]
    assert np.allclose(np.concatenate(found), np.concatenate(expected), atol=1e-12)
    assert [two.value(f"t{i}") for i in range(4)] == [one.value(f"t{i}") for i in range(4)]


@pytest.mark.parametrize(
    "estimator",
    [
        SPO(ValueTracker()),
        SPO(ValueTracker(), scale="none", slope="fitted"),
        SPO(ValueTracker(pooled=True), scale="none"),
        ReinforcePlusPlus(),
        OPO(),
        ASPO(SPO(ValueTracker(), scale="none")),
        NegativeWeight(SPO(ValueTracker())),
        EMPG(GRPO()),
        D3S(GRPO()),
    ],
)
def test_who_needs_the_batch_is_refused_in_one_line(estimator) -> None:
    with pytest.raises(UserError, match="judges whole batches") as error:
        check_in_parts(estimator, LearnerConfig(), registry.make("loss", "ppo_clip"))
    assert "\n" not in str(error.value)


def test_a_loss_that_selects_and_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="clip_cov selects"):
        check_in_parts(Reinforce(), LearnerConfig(loss="clip_cov"), registry.make("loss", "clip_cov"))
    for settings, message in (
        ({"rollout": {"mode": "sync"}}, 'rollout.mode = "async"'),
        ({"rollout": {"batch_tokens": 100}}, "batch_tokens = 0"),
        ({"learner": {"epochs": 2}}, "one optimizer step"),
        ({"rollout": {"batch": 129}}, "cannot be cut into 4 equal parts"),
    ):
        sections = {**settings, "rollout": {"learn_in_parts": 4, **settings.get("rollout", {})}}
        with pytest.raises(UserError, match=message):
            validate(sections)


def test_a_part_that_is_not_finite_takes_no_step_and_leaves_nothing(tmp_path) -> None:
    batch, advantages = a_batch(tiny_models.model())
    learner = Learner(tiny_models.model(), LearnerConfig(), dump_dir=tmp_path)
    before = [p.clone() for p in learner.optimizer.parameters]
    advantages.values[4][0] = np.inf
    streamed = StreamedUpdate(learner, Given(batch, advantages), 12)
    streamed.add(Batch(batch[:3]))
    with pytest.raises(NotFinite, match="t4"):
        streamed.add(Batch(batch[3:]))
    assert all(torch.equal(p, old) for p, old in zip(learner.optimizer.parameters, before, strict=True))
    StreamedUpdate(learner, Given(batch, advantages), 12)
    assert all(p.grad is None for p in learner.optimizer.parameters)
