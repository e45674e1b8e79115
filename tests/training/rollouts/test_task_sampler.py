"""The sampler draws by the tracker's weights of the moment, and resumes where it was."""

import json
import math
from collections import Counter
from itertools import pairwise, permutations

import pytest

from solostream.errors import UserError
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.rollouts.task_sampler import Prioritized, TaskSampler, Uniform


def sampler_of(
    ids: list[str], tracker: ValueTracker | None = None, *, streams: int = 1, seed: int = 0, **options: float
) -> TaskSampler:
    chosen = Uniform(ids, seed) if tracker is None else Prioritized(ids, tracker, seed, **options)
    return TaskSampler(ids, chosen, streams=streams)


def uneven() -> ValueTracker:
    """Values 0.5 and near 0 and 1: weights 0.55, and about 0.28 each."""
    tracker = ValueTracker()
    tracker.initialize("mixed", [0, 1] * 4)
    tracker.initialize("solved", [1] * 8)
    tracker.initialize("hopeless", [0] * 8)
    return tracker


def test_frequencies_follow_the_weights() -> None:
    tracker = uneven()
    ids = ["mixed", "solved", "hopeless"]
    sampler = sampler_of(ids, tracker, seed=1)
    n = 20_000
    seen = Counter(sampler.draw()[0] for _ in range(n))
    weights = tracker.weights(ids)
    for task_id, weight in zip(ids, weights, strict=True):
        p = weight / sum(weights)
        assert abs(seen[task_id] / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_weights_of_the_moment() -> None:
    """Evidence between draws changes what is drawn next: nothing is cached."""
    tracker = ValueTracker()
    sampler = sampler_of(["a", "b"], tracker, seed=0)
    for _ in range(300):
        tracker.observe("a", 1)
    n = 4000
    share = sum(sampler.draw()[0] == "a" for _ in range(n)) / n
    a, b = tracker.weights(["a", "b"])
    assert share == pytest.approx(a / (a + b), abs=0.02)
    assert share < 0.15


def test_streams_share_a_prompt_and_a_group() -> None:
    sampler = sampler_of([f"t{i}" for i in range(50)], streams=4, seed=3)
    drawn = [sampler.draw() for _ in range(40)]
    for g in range(10):
        assert len(set(drawn[4 * g : 4 * g + 4])) == 1
        assert drawn[4 * g][1] == g


def test_uniform_is_every_task_once_a_pass() -> None:
    ids = [f"t{i}" for i in range(30)]
    sampler = sampler_of(ids, seed=2)
    passes = [[sampler.draw()[0] for _ in ids] for _ in range(3)]
    assert all(sorted(p) == sorted(ids) for p in passes)
    assert passes[0] != passes[1] != ids


@pytest.mark.parametrize("prioritized", [True, False])
def test_resumes_where_it_was(prioritized: bool) -> None:
    ids = ["mixed", "solved", "hopeless"]
    one, two = (sampler_of(ids, uneven() if prioritized else None, streams=2, seed=s) for s in (5, 99))
    for _ in range(7):
        one.draw()
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [one.draw() for _ in range(50)] == [two.draw() for _ in range(50)]


@pytest.mark.parametrize(
    ("ids", "settings"), [([], {}), (["a", "a"], {}), (["a"], {"streams": 0}), (["a"], {"epsilon": 0})]
)
def test_impossible_settings(ids: list, settings: dict) -> None:
    with pytest.raises(UserError, match="sampler needs"):
        sampler_of(ids, uneven(), **settings)


def test_a_checkpoint_of_other_data_is_refused() -> None:
    sampler = sampler_of([f"t{i}" for i in range(10)])
    sampler.draw()
    with pytest.raises(UserError, match="same data"):
        sampler_of(["a"]).load_state_dict(sampler.state_dict())


def test_no_task_comes_twice_in_a_batch() -> None:
    """Draws of 4 out of 6 without replacement; the next batch may have any of them again."""
    ids = [f"t{i}" for i in range(6)]
    sampler = Prioritized(ids, ValueTracker(), 3, 4)
    batches = [[sampler.next() for _ in range(4)] for _ in range(200)]
    assert all(len(set(batch)) == 4 for batch in batches)
    assert Counter(t for batch in batches for t in batch).keys() == set(ids)
    assert any(one[-1] in two for one, two in pairwise(batches))
    half, resumed = Prioritized(ids, ValueTracker(), 3, 4), Prioritized(ids, ValueTracker(), 9, 4)
    begun = [half.next() for _ in range(2)]
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict())))
    assert len({*begun, *(resumed.next() for _ in range(2))}) == 4


def test_a_pool_smaller_than_the_batch_is_gone_through_again() -> None:
    sampler = Prioritized(["a", "b"], ValueTracker(), 0, 5)
    assert Counter(sampler.next() for _ in range(10)) == {"a": 5, "b": 5}


def test_evidence_counts_in_the_weight_of_the_conference_version() -> None:
    """√(v(1 − v))/N^γ + ε with v = .25 and N = 4: .433/4^.5 + .05; less than one observation counts as one."""
    tracker = ValueTracker()
    state = tracker.state_dict()
    state["beliefs"]["x"] = {"start": [1, 3, None], "now": [1, 3], "events": []}
    state["beliefs"]["y"] = {"start": [0.1, 0.3, None], "now": [0.1, 0.3], "events": []}
    tracker.load_state_dict(state)
    root = (3 / 16) ** 0.5
    assert tracker.weights("xy", 0.05, 0.5) == pytest.approx([root / 2 + 0.05, root + 0.05])


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_the_law_of_a_batch_is_that_of_successive_draws_without_replacement(gamma: float) -> None:
    """P(x₁, x₂, x₃) = Π_k w(x_k)/Σ of those not drawn yet, for all 60 triples of five tasks: Pearson's χ².

    w = √(v(1 − v))/N^γ + ε (arXiv 2509.13232, Eq. 11; γ of its conference version), by hand from the outcomes. A law
    by w^0.8 or w^1.2 is refused.
    """
    outcomes = {"a": [1, 0], "b": [1, 1, 1, 1, 1, 0], "c": [0] * 7, "d": [1, 0, 0, 1, 0], "e": [1]}
    tracker, w = ValueTracker(), {}
    for task_id, rewards in outcomes.items():
        tracker.initialize(task_id, rewards)
        v = (sum(rewards) + 0.5) / (len(rewards) + 1)
        w[task_id] = math.sqrt(v * (1 - v)) / len(rewards) ** gamma + 0.02

    def law(power: float) -> dict[tuple[str, ...], float]:
        probability = {}
        for triple in permutations(w, 3):
            left, p = dict(w), 1.0
            for task_id in triple:
                p *= left[task_id] ** power / sum(x**power for x in left.values())
                del left[task_id]
            probability[triple] = p
        return probability

    n, sampler = 20_000, Prioritized(list(w), tracker, 11, 3, epsilon=0.02, gamma=gamma)
    seen = Counter(tuple(sampler.next() for _ in range(3)) for _ in range(n))

    def chi_square(power: float) -> float:
        return sum((seen[triple] - n * p) ** 2 / (n * p) for triple, p in law(power).items())

    assert seen.keys() <= law(1).keys()
    assert sum(law(1).values()) == pytest.approx(1)
    assert chi_square(1) < 100  # 59 degrees of freedom: 59 ± 11
    assert min(chi_square(0.8), chi_square(1.2)) > 150
