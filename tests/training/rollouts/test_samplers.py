"""Curricula: worked numbers of each, a toy problem on which it does what its paper says, and an exact resume."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks import curriculum
from solostream import registry
from solostream.agent.rollout import seed_of
from solostream.agent.trajectory import Dispatch
from solostream.envs.data import Tasks
from solostream.envs.types import Task
from solostream.errors import UserError
from solostream.training.advantages.value_tracker import ValueTracker
from solostream.training.config import Config, assign, validate
from solostream.training.rollouts.samplers.dump import Dump
from solostream.training.rollouts.samplers.history import Outcome, OutcomeHistory
from solostream.training.rollouts.samplers.inner import sampler_of_run
from solostream.training.rollouts.task_sampler import Prioritized, TaskSampler, Uniform

SOLUTION = {"solution": "first this, then that, after it a third thing and so the answer"}
TASKS = Tasks(Task(f"t{i}", f"problem {i}", str(700 + 13 * i), "ab"[i % 2], SOLUTION) for i in range(8))
SOURCES = {task.id: task.source for task in TASKS}


def made(name: str, tracker: ValueTracker | None = None, seed: int = 0, **options: Any) -> tuple[Any, OutcomeHistory]:
    history = OutcomeHistory(SOURCES, tracker)
    given: Mapping[str, Any] = {"tasks": TASKS.by_id, "tracker": tracker, "sources": SOURCES, "history": history}
    return registry.make("sampler", name, options, task_ids=list(SOURCES), seed=seed, batch=1, **given), history


def lost(task_id: str, n: int) -> list[Outcome]:
    return [Outcome(task_id, 0.0, 0.0)] * n


def won(task_id: str, n: int) -> list[Outcome]:
    return [Outcome(task_id, 1.0, 0.5)] * n


def drawn(sampler: Any, n: int) -> Counter[str]:
    return Counter(sampler.next() for _ in range(n))


def test_a_form_of_a_form_is_refused() -> None:
    with pytest.raises(UserError, match="sampler 'reformulate' chooses a form itself"):
        made("hints", of="reformulate")


def test_dump_by_hand() -> None:
    """The algorithm sheet's numbers: L = (.4, .1), n = (30, 10)."""
    sampler, history = made("dump")
    history.learn([*(Outcome("t0", 0.0, 0.4),) * 30, *(Outcome("t1", 0.0, 0.1),) * 10])
    p = sampler.probabilities()
    assert p["a"] == pytest.approx(0.42012, abs=5e-6)
    assert p["b"] == pytest.approx(0.57988, abs=5e-6)
    assert sampler.metrics() == {"sampler/a": p["a"], "sampler/b": p["b"]}
    assert made("dump", temperature=1e9)[0].probabilities()["a"] == pytest.approx(0.5)


def test_dump_looks_at_the_last_three_hundred_and_at_a_form_as_at_its_problem() -> None:
    _, history = made("dump")
    history.learn([Outcome("t0", 0.0, 9.0)] * 50 + [Outcome("t2~hint=0.5", 0.0, 0.25)] * 300)
    assert history.size("a") == 0.25
    assert (history.drawn("a"), history.drawn("b")) == (350, 0)
    assert history.size("b") == 0.0


def test_the_history_counts_what_was_tried_and_solved() -> None:
    _, history = made("dump")
    history.learn(Outcome("t3", reward, 0.25) for reward in (0.5, 0.51, 1.0, 0.0, 0.75))
    assert (history.tried("t3"), history.solved("t3")) == (5, 3)
    assert (history.tried("t4"), history.solved("t4")) == (0, 0)
    assert (history.source("t3"), history.source("t3~hint=0.5"), history.source("of nobody")) == ("b", "b", "")
    assert history.state_dict()["tasks"] == {"t3": [5, 3, [0.5, 0.51, 1.0, 0.0, 0.75]]}
    # what was loaded forgets like what was learnt
    copy = OutcomeHistory(SOURCES)
    copy.load_state_dict(history.state_dict())
    copy.learn([Outcome("t3", 1.0, 0.75)] * 300)
    assert copy.size("b") == 0.75


def test_a_sampler_that_tells_and_remembers_is_heard() -> None:
    sampler, history = made("dump")
    tasks = TaskSampler(list(SOURCES), sampler)
    told = tasks.learn([Outcome("t0", 1.0, 0.4), Outcome("t1", 0.0, 0.1)])
    assert tasks.history is history
    assert (history.tried("t0"), history.size("b")) == (1, 0.1)
    assert told == sampler.metrics()
    assert set(told) == {"sampler/a", "sampler/b"}


@pytest.mark.parametrize("name", ["uniform", "prioritized", "bands", "direct", "dump", "hints", "reformulate"])
def test_the_seed_decides_the_draws(name: str) -> None:
    tracker = ValueTracker()
    for task_id in list(SOURCES)[:5]:
        tracker.initialize(task_id, [0] * 8)  # hopeless: some samplers look there only now and then
    again, same, other = (made(name, tracker, seed)[0] for seed in (5, 5, 6))
    draws = [again.next() for _ in range(40)]
    assert [same.next() for _ in range(40)] == draws
    assert [other.next() for _ in range(40)] != draws


def test_dump_leaves_a_source_that_has_nothing_to_teach_and_still_looks_in() -> None:
    sampler, history = made("dump", seed=3)
    for _ in range(60):
        batch = [sampler.next() for _ in range(8)]
        history.learn(Outcome(t, 0.0, 0.6 if SOURCES[t] == "b" else 0.0) for t in batch)
    share = drawn(sampler, 2000)
    of_b = sum(n for t, n in share.items() if SOURCES[t] == "b") / 2000
    assert of_b == pytest.approx(sampler.probabilities()["b"], abs=0.04)
    assert 0.6 < of_b < 0.995
    assert set(share) == set(SOURCES)  # each of its problems, in passes


def test_dump_wants_several_sources() -> None:
    with pytest.raises(UserError, match="mix several data sets"):
        Dump(["x", "y"], OutcomeHistory({"x": "s", "y": "s"}))


def test_bands_take_their_shares_and_an_empty_ones_go_to_the_others() -> None:
    tracker = ValueTracker()
    for task_id, outcomes in {"t0": [0] * 9, "t1": [1] * 9, "t2": [0, 1] * 4, "t3": [0, 1] * 4}.items():
        tracker.initialize(task_id, outcomes)  # the other four are at one half, too
    sampler, _ = made("bands", tracker, seed=5, shares=(0.5, 0.3, 0.2))
    assert [sampler.band(t) for t in ("t0", "t1", "t2", "t7")] == [0, 2, 1, 1]
    n = 6000
    share = drawn(sampler, n)
    for task_id, p in {"t0": 0.5, "t1": 0.2, "t2": 0.05, "t6": 0.05}.items():
        assert abs(share[task_id] / n - p) < 4 * (p * (1 - p) / n) ** 0.5
    tracker.initialize("t0", [1] * 9)  # nothing is hard any more: .3 and .2 share what is left
    share = drawn(sampler, n)
    assert (share["t0"] + share["t1"]) / n == pytest.approx(0.4, abs=0.03)


def test_bands_without_a_tracker_go_by_the_last_rewards() -> None:
    sampler, history = made("bands", shares=(1, 0, 0))
    history.learn([*lost("t4", 8), *won("t5", 2), *lost("t5", 6)])  # .5/9 and 2.5/9
    assert (history.value("t4"), history.value("t5")) == (pytest.approx(0.5 / 9), pytest.approx(2.5 / 9))
    assert set(drawn(sampler, 50)) == {"t4"}
    with pytest.raises(UserError, match=r"hard = 0.6 must be below medium = 0.5"):
        made("bands", hard=0.6, medium=0.5)
    for bad in ((0, 0, 0), (0.5, -0.1, 0.6)):
        with pytest.raises(UserError, match="none below 0, at least one above"):
            made("bands", shares=bad)


def test_a_hint_grows_while_a_problem_is_hopeless_and_fades_when_it_is_not() -> None:
    sampler, history = made("hints", probe=0.0)
    assert set(drawn(sampler, 40)) == set(SOURCES)  # nothing is hopeless yet
    steps = ["t0", "t0~hint=0.25", "t0~hint=0.5", "t0~hint=0.75"]
    for form, following in zip(steps, [*steps[1:], steps[-1]], strict=True):
        history.learn(lost(form, 8))
        seen = {t for t in drawn(sampler, 60) if t.startswith("t0")}
        assert seen == {following}
    history.learn(won("t0~hint=0.5", 1))
    assert "t0~hint=0.5" in drawn(sampler, 60)
    fading, history = made("hints", probe=0.5, seed=2)
    history.learn([*lost("t0", 8), *lost("t0~hint=0.25", 8)])
    share = {t: n / 4000 * 8 for t, n in drawn(fading, 4000).items() if t.startswith("t0")}
    assert share == {"t0~hint=0.5": pytest.approx(0.5, abs=0.1), "t0~hint=0.25": pytest.approx(0.5, abs=0.1)}
    history.learn(won("t0", 2))
    assert {t for t in drawn(fading, 60) if t.startswith("t0")} == {"t0"}


def test_a_problem_without_a_solution_has_no_hints() -> None:
    bare = Tasks([Task("x", "why?", "7", "s")])
    history = OutcomeHistory({"x": "s"})
    history.learn(lost("x", 8))
    given = {"tasks": bare.by_id, "history": history, "task_ids": ["x"]}
    assert set(drawn(registry.make("sampler", "hints", {}, **given), 20)) == {"x"}


def test_reformulations_climb_from_choices_to_the_problem_itself() -> None:
    sampler, history = made("reformulate")

    def of_t0() -> set[str]:
        return {t for t in drawn(sampler, 40) if t.partition("~")[0] == "t0"}

    history.learn(lost("t0", 3))
    assert of_t0() == {"t0"}  # patience
    history.learn(lost("t0", 1))
    assert of_t0() == {"t0~choice=4"}
    history.learn([*lost("t0~choice=4", 3), *won("t0~choice=4", 1)])
    assert of_t0() == {"t0~choice=4"}  # one of four is what guessing brings
    history.learn(won("t0~choice=4", 2))
    assert of_t0() == {"t0~choice=10"}  # three of the last four
    history.learn(won("t0~choice=10", 4))
    assert of_t0() == {"t0~cloze"}
    history.learn(won("t0~cloze", 4))
    assert of_t0() == {"t0"}
    history.learn([*lost("t0~choice=4", 4)])
    assert of_t0() == {"t0~choice=4"}  # forgotten
    history.learn(won("t0", 1))
    assert of_t0() == {"t0"}  # solved once: off the ladder for good


def test_a_share_goes_without_the_tool_and_more_where_it_is_not_needed() -> None:
    tracker = ValueTracker()
    tracker.initialize("t0~direct", [1] * 8)
    sampler, _ = made("direct", tracker, share=0.2, when_known=0.8)
    n = 16_000
    share = drawn(sampler, n)
    assert share["t0~direct"] / (share["t0"] + share["t0~direct"]) == pytest.approx(0.8, abs=0.04)
    assert share["t3~direct"] / (share["t3"] + share["t3~direct"]) == pytest.approx(0.2, abs=0.04)


def test_the_sampler_inside_is_named_with_its_options() -> None:
    tracker = ValueTracker()
    tracker.initialize("t1", [0, 1] * 4)
    for task_id in set(SOURCES) - {"t1"}:
        tracker.initialize(task_id, [1] * 8)
    for epsilon, share in ((1e-3, 0.237), (100.0, 0.126)):  # .501/(.501 + 7·.230); all alike
        sampler, _ = made("hints", tracker, of={"sampler": "prioritized", "epsilon": epsilon})
        assert drawn(sampler, 4000)["t1"] / 4000 == pytest.approx(share, abs=0.03)
    with pytest.raises(UserError, match="no advantage here keeps a tracker"):
        made("hints", of="prioritized")
    with pytest.raises(UserError, match="no option 'epsilonn'"):
        made("hints", tracker, of={"sampler": "prioritized", "epsilonn": 1})


class Given:
    """From outside: it keeps what the run hands over."""

    def __init__(
        self, task_ids: Any, tasks: Any, tracker: Any, sources: Any, history: OutcomeHistory, seed: int, batch: int
    ):
        self.given = (task_ids, tasks, tracker, sources, seed, batch)
        self.history = history

    def next(self) -> str:
        return "t0"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Own:
    """An environment that draws its problems by its seed."""

    def __init__(self, max_turns: int = 3) -> None:
        self.max_turns = max_turns


def run_of(*settings: str) -> Config:
    return validate(assign({}, ["rollout.batch=12", "run.seed=5", *settings]))


def test_a_run_hands_its_sampler_the_pool_its_tracker_a_seed_and_the_draws_of_an_update() -> None:
    tracker = ValueTracker()
    spec = f"{__name__}:Given"
    for uses_tracker, group, draws in ((True, 1, 12), (False, 4, 3)):
        config = run_of(f"algorithm.sampler={spec}", f"algorithm.group_size={group}")
        made: Any = sampler_of_run(config, TASKS, tracker, uses_tracker=uses_tracker)
        ids, tasks, handed, sources, seed, batch = made.given
        assert list(ids) == [f"t{i}" for i in range(8)]
        assert tasks["t3"].prompt == "problem 3"
        assert handed is tracker
        assert (sources["t3"], sources["t4"]) == ("b", "a")
        assert (seed, batch) == (seed_of(5, "sampler"), draws)
        assert made.history.source("t5") == "b"
        # A tracker that no advantage keeps says nothing about a task.
        assert made.history.tracker is (tracker if uses_tracker else None)


def test_a_run_that_names_no_sampler_draws_by_the_tracker_where_there_is_one() -> None:
    tracker = ValueTracker()
    by_values = sampler_of_run(run_of(), TASKS, tracker, uses_tracker=True)
    assert isinstance(by_values, Prioritized)
    assert by_values.tracker is tracker
    assert isinstance(sampler_of_run(run_of(), TASKS, tracker, uses_tracker=False), Uniform)
    options = ("algorithm.sampler=bands", "sampler.bands.hard=0.31")
    bands: Any = sampler_of_run(run_of(*options), TASKS, tracker, uses_tracker=True)
    assert [bands.band(t) for t in TASKS.by_id] == [1] * 8
    tracker.initialize("t0", [0, 0, 0, 1])  # 1.5/5: below .31, above the default
    assert bands.band("t0") == 0


def test_forms_are_for_environments_that_are_given_tasks() -> None:
    own = f"env.id={__name__}:Own"
    for name in ("hints", "reformulate", "direct"):
        with pytest.raises(UserError, match=f"sampler '{name}' asks for other forms of problems"):
            sampler_of_run(run_of(f"algorithm.sampler={name}", own), TASKS, ValueTracker(), uses_tracker=True)
    assert isinstance(sampler_of_run(run_of(own), TASKS, ValueTracker(), uses_tracker=False), Uniform)


@pytest.mark.parametrize("name", ["dump", "bands", "hints", "reformulate", "direct"])
def test_resumes_where_it_was(name: str) -> None:
    def run(seed: int) -> TaskSampler:
        sampler, _ = made(name, seed=seed)
        return TaskSampler(list(SOURCES), sampler, streams=2)

    one, two = run(1), run(2)
    rng = np.random.default_rng(0)

    def on(sampler: TaskSampler, rewards: list[float]) -> list[tuple[str, int]]:
        got = [sampler.draw() for _ in rewards]
        sampler.learn(Outcome(t, r, r / 2) for (t, _), r in zip(got, rewards, strict=True))
        return got

    for _ in range(25):
        on(one, (rng.random(7) < 0.1).astype(float).tolist())
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for _ in range(25):
        rewards = (rng.random(7) < 0.1).astype(float).tolist()
        assert on(one, rewards) == on(two, rewards)


def test_nothing_is_kept_for_a_sampler_that_does_not_ask() -> None:
    sampler, _ = made("uniform")
    plain = TaskSampler(list(SOURCES), sampler)
    assert plain.history is None
    assert plain.learn([Outcome("t0", 1.0, 1.0)]) == {}
    assert set(plain.state_dict()) == {"sampler", "current"}


class Liar:
    def next(self) -> str:
        return "t9~hint=0.5"


def test_a_form_of_an_unknown_problem_is_refused() -> None:
    with pytest.raises(UserError, match="none of the 8 tasks"):
        TaskSampler(list(SOURCES), Liar()).draw()  # type: ignore[arg-type]


# The combination table of docs/algorithms.md: what the samplers and dynamic sampling go with.
SAMPLERS = ("uniform", "prioritized", "dump", "bands", "hints", "reformulate", "direct")
ESTIMATORS = {
    "spo": (),
    "maxrl_stream": (),
    "reinforce_pp": (),
    "grpo": ("algorithm.group_size=4",),
    "rloo": ("algorithm.group_size=4",),
    "maxrl": ("algorithm.group_size=4",),
    "passk": ("algorithm.group_size=4", "algorithm.dynamic_sampling=2"),
}
NEEDS_TRACKER = {("prioritized", e) for e in ESTIMATORS if e not in ("spo", "maxrl_stream")}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("advantage", list(ESTIMATORS))
def test_every_sampler_goes_with_every_estimator_and_a_resumed_run_is_the_same(advantage: str, sampler: str) -> None:
    settings = (
        f"algorithm.advantage={advantage}", "algorithm.stages=[]", f"algorithm.sampler={sampler}",
        *ESTIMATORS[advantage],
    )  # fmt: skip
    if (sampler, advantage) in NEEDS_TRACKER:
        with pytest.raises(UserError, match="draws by the tracker's values"):
            curriculum.Run(settings, 0, 0.05)
        return
    one, two = curriculum.Run(settings, 3, 0.05), curriculum.Run(settings, 4, 0.05)
    one.start()
    for _ in range(2):
        one.step()
    state = json.loads(
        json.dumps([one.sampler.state_dict(), one.tracker.state_dict(), one.estimator.state_dict(), one.event])
    )
    two.sampler.load_state_dict(state[0])
    two.tracker.load_state_dict(state[1])
    two.estimator.load_state_dict(state[2])
    two.event, two.version = state[3], one.version
    # What is not this part's to keep: the policy, the optimizer, the episodes' random numbers.
    two.policy, two.adam, two.rng = one.policy, one.adam, np.random.default_rng(9)
    before = (one.policy.logits.copy(), one.adam.m.copy(), one.adam.v.copy(), one.adam.t)
    got = []
    for run in (one, two):
        run.policy.logits[:] = before[0]
        run.adam.m, run.adam.v, run.adam.t = before[1].copy(), before[2].copy(), before[3]
        run.rng = np.random.default_rng(9)
        for _ in range(2):
            run.step()
        got.append((run.policy.logits.copy(), run.sampler.state_dict(), run.event))
    assert np.array_equal(got[0][0], got[1][0])
    assert got[0][1:] == got[1][1:]


def reached(method: str, budget: int, seed: int = 1) -> tuple[int, list[float]]:
    found = curriculum.play(curriculum.METHODS[method], seed, 0.05, budget)
    return found.trajectories or budget, found.accuracy


def test_hints_and_reformulations_reach_what_is_never_solved_without() -> None:
    """Source "hopeless", .0005 solved at first: at equal trajectories plain problems teach it nothing."""
    hopeless = list(curriculum.SOURCES).index("hopeless")
    plain, hints, forms = (reached(m, 5000)[1][hopeless] for m in ("spo uniform", "spo hints", "spo reformulate"))
    assert plain < 0.01
    assert hints > 0.02
    assert forms > 0.2


def test_a_trajectory_of_a_form_is_one_of_its_problem() -> None:
    """The benchmark's policy: a hint gives the first tokens, and the gradient is of the others only."""
    run = curriculum.Run(curriculum.METHODS["spo hints"], 0, 0.05)
    played = run.policy.play("1/3~hint=0.5", np.random.default_rng(0))
    assert (played.given, len(played.token)) == (2, 2)
    one = played.trajectory("1/3~hint=0.5", Dispatch())
    assert (one.task_id, one.n_action_tokens) == ("1/3~hint=0.5", 2)


def climbed(name: str, draws: int = 1800) -> float:
    """Mean success of twenty problems solved one time in four, among twenty that never and twenty that always are."""
    starts = {f"{kind}{i}": kind for kind in ("never", "sometimes", "always") for i in range(20)}
    tracker, rng = ValueTracker(), np.random.default_rng(7)
    logits = {t: {"never": -9.0, "sometimes": -1.1, "always": 4.0}[kind] for t, kind in starts.items()}
    for t, kind in starts.items():
        tracker.initialize(t, {"never": [0] * 8, "sometimes": [1, 1, 0, 0, 0, 0, 0, 0], "always": [1] * 8}[kind])
    given = {"tasks": {}, "tracker": tracker, "sources": {}, "history": OutcomeHistory({}, tracker)}
    sampler = registry.make("sampler", name, {}, task_ids=list(starts), seed=1, batch=1, **given)
    for event in range(draws):
        task_id = sampler.next()
        p = 1 / (1 + np.exp(-logits[task_id]))
        right = float(rng.random() < p)
        logits[task_id] += 0.3 * (right - tracker.value(task_id)) * (right - p)
        tracker.observe(task_id, right, event=event)
    return float(np.mean([1 / (1 + np.exp(-logits[t])) for t, kind in starts.items() if kind == "sometimes"]))


def test_bands_put_the_draws_where_something_can_be_learnt() -> None:
    assert 1 - climbed("bands") < 0.6 * (1 - climbed("uniform"))
