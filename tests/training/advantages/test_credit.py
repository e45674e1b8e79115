"""Credit inside a trajectory: every method by hand, and on a toy problem where it does what its paper says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.credit_parts.chain import Family, Policy
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.envs.types import ToolCall
from solostream.errors import UserError
from solostream.sandbox.types import Execution
from solostream.training.advantages import ValueTracker, estimator
from solostream.training.advantages.base import Advantages
from solostream.training.advantages.credit.aepo import AEPO
from solostream.training.advantages.credit.bnpo import BNPO, BNPOStream, density, shape
from solostream.training.advantages.credit.d3s import D3S, widest
from solostream.training.advantages.credit.dcpo import DCPO
from solostream.training.advantages.credit.dual_level import DualLevel
from solostream.training.advantages.credit.empg import EMPG
from solostream.training.advantages.credit.entropy import after_tools, of_turns, reader, sampled
from solostream.training.advantages.credit.gigpo import GiGPO
from solostream.training.advantages.credit.salt import SALT
from solostream.training.advantages.credit.seed import SEED, semantic_entropy
from solostream.training.advantages.credit.steps import actions, returns, spans, states, turn_rewards
from solostream.training.batch import Batch


class Given:
    """An estimator that gives one number a trajectory, or an array."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __call__(self, batch: Sequence[Trajectory]) -> Advantages:
        pairs = zip(self.values, batch, strict=True)
        return Advantages([np.full(t.n_action_tokens, v) if np.ndim(v) == 0 else np.array(v) for v, t in pairs])

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...


class Keeper(Given):
    """With a metric and a state of its own."""

    def __call__(self, batch: Sequence[Trajectory]) -> Advantages:
        return Advantages(super().__call__(batch).values, {"mine": 1.25})

    def load_state_dict(self, state: dict) -> None:
        self.loaded = state


def played(
    *turns: tuple[str, list[float]],
    paid: Sequence[float] = (),
    reward: float | None = None,
    group: int | None = 0,
    task: str = "t",
    event: int = 0,
    value: float | None = 0.5,
    outputs: Sequence[str] = (),
    **fields: Any,
) -> Trajectory:
    """turns: what a turn does (code; the last one is an answer) and H of each of its tokens (−log π)."""
    ledger = TokenRecord()
    ledger.add_observation("user", [1, 2], "question")
    rewards = list(paid) + [0.0] * (len(turns) - len(paid))
    for t, (code, entropies) in enumerate(turns):
        n, last = len(entropies), t == len(turns) - 1
        calls = [] if last else [ToolCall("python", {"code": code}, (0, 1))]
        done = [Execution()] * len(calls)
        logprobs = [-h for h in entropies]
        ledger.add_action([3] * n, logprobs, [0] * n, code, calls, done, [0] * len(calls), reward=rewards[t])
        if not last:
            ledger.add_observation("tool", [9], outputs[t] if t < len(outputs) else f"out {code}")
    total = math.fsum(rewards) if reward is None else reward
    return ledger.close(task, total, "answered", dispatch=Dispatch(event, value, 0, group), **fields)


# ---- steps and entropy ----


def test_a_trajectory_as_a_decision_process() -> None:
    one = played(("a", [0.1, 0.2]), ("b", [0.3]), ("done", [0.4] * 3), paid=(0.25, 0.0, 0.5))
    assert [(s.start, s.stop) for s in spans(one)] == [(0, 2), (2, 3), (3, 6)]
    assert turn_rewards(one).tolist() == [0.25, 0.0, 0.5]
    assert returns(one, 0.9).tolist() == pytest.approx([0.25 + 0.81 * 0.5, 0.45, 0.5])
    unpaid = played(("a", [0.1]), ("done", [0.1]), reward=0.75)
    assert turn_rewards(unpaid).tolist() == [0.0, 0.75]


def test_actions_are_calls_and_states_are_what_the_interpreter_knows() -> None:
    one = played(("a", [0.1]), ("b", [0.1]), ("done", [0.1]))
    same = played(("a", [0.9]), ("b", [0.2]), ("other", [0.1]))
    other = played(("c", [0.1]), ("b", [0.1]), ("done", [0.1]), outputs=("out a",))
    assert actions(one)[:2] == actions(same)[:2]
    assert actions(one)[2] != actions(same)[2]
    assert states(one) == states(same)
    # after another call the interpreter is another one, though the tool printed the same
    assert states(one)[0] == states(other)[0]
    assert states(one)[1] != states(other)[1]
    assert states(one, "observation") == states(other, "observation") == ["question", "out a", "out b"]
    assert len(set(states(one))) == 3


def test_a_call_is_what_was_run_and_a_turn_without_one_what_was_said() -> None:
    """Words around a call, the order of its arguments and calls that were refused do not make another action."""
    run = lambda status="ok", **arguments: ToolCall("python", arguments, (0, 1), status=status)

    def turn(text: str, *calls: ToolCall) -> str:
        ledger = TokenRecord()
        ledger.add_observation("user", [1], "question")
        ledger.add_action([3], [-0.1], [0], text, list(calls), [Execution()] * len(calls), [0] * len(calls))
        return actions(ledger.close("t", 0.0, "answered", dispatch=Dispatch(0, None, 0, 0)))[0]

    asked = turn("so", run(code="a", lang="py"))
    assert turn("thus", run(lang="py", code="a")) == asked
    assert turn("so", run(code="b", lang="py")) != asked
    assert turn("so", run("malformed", code="b"), run(code="a", lang="py")) == asked
    assert turn(" said\n", run("malformed", code="b")) == turn("said") == "said"


def test_entropy_of_turns_and_after_tools() -> None:
    one = played(("a", [0.5, 1.5]), ("b", [2.0, 0.25, 0.75]), ("done", [0.125]))
    assert of_turns(sampled(one), one).tolist() == pytest.approx([1.0, 1.0, 0.125])
    assert after_tools(one, 2) == pytest.approx([1.125, 0.125])
    assert after_tools(one, 1, np.arange(6.0)) == [2.0, 5.0]
    with pytest.raises(UserError, match="give the stage its `entropies`"):
        reader("exact", None)


def test_minus_log_pi_estimates_the_entropy_without_bias() -> None:
    """12,000 tokens of a policy whose entropy is known: within four standard errors."""
    policy = Policy(Family(turns=2, options=4, decisive=0, settled=0.7))
    batch = policy.play([("t", Dispatch(i, 0.5, 0, 0)) for i in range(3000)], np.random.default_rng(3))
    p = policy.probabilities()
    h = -(p * np.log(p)).sum(1)  # [4 tokens]
    found = np.stack([sampled(t) for t in batch])
    error = found.std(0) / 3000**0.5
    assert (np.abs(found.mean(0) - h) <= 4 * error + 1e-6).all()
    assert h.min() < h.max() - 0.1


# ---- EMPG ----


def test_empg_worked_numbers() -> None:
    """algorithms.md: H = (.2, .6, 1), k = k' = 1, ζ = .1, A = 1."""
    batch = [played(("a", [0.2, 0.2]), ("b", [0.3, 0.9]), ("done", [1.0]))]
    found = EMPG(Keeper(1.0))(batch)
    # H = .2, .6, 1, so h = 0, ½, 1: the least of exp(−h) over their mean
    assert found.metrics == {"mine": 1.25, "empg/weight_min": pytest.approx(0.55902, abs=5e-5)}
    got = found.values[0]
    assert got.tolist() == pytest.approx([0.54761, 0.54761, -0.07410, -0.07410, -0.47351], abs=2e-5)


def test_empg_weighs_all_turns_of_a_batch_together_without_what_is_filtered() -> None:
    """H = .5, 1.5 of the one, 2.5 of the other: h = 0, ½, 1; a third trajectory is filtered."""
    turns = [played(("a", [0.5]), ("done", [1.5])), played(("done", [2.5])), played(("done", [9.0]))]
    batch = Batch(turns, [True, True, False])
    got = EMPG(Given(-2.0, 3.0, 5.0), k=2.0, k_future=0.5, zeta=0.4)(batch).values
    g = np.exp(-2.0 * np.array([0, 0.5, 1]))
    g /= g.mean()
    raw = np.array([-2 * g[0] + 0.4 * math.exp(-0.25), -2 * g[1], 3 * g[2]])
    assert [float(v[0]) for v in got[:1]] + [float(got[0][1]), float(got[1][0])] == pytest.approx(raw - raw.mean())
    assert got[2].tolist() == [0.0]


def test_empg_moves_confident_turns_more_and_takes_exact_entropies() -> None:
    batch = [played(("a", [0.1]), ("done", [2.0])), played(("b", [1.0]), ("done", [1.0]))]
    plain = EMPG(Given(1.0, -1.0), zeta=0.0)(batch).values
    assert plain[0][0] > plain[0][1]
    turned = EMPG(
        Given(1.0, -1.0), zeta=0.0, entropy="exact", entropies=lambda b: [np.array([2.0, 0.1]), np.array([1.0, 1.0])]
    )(batch).values
    assert turned[0].tolist() == pytest.approx(plain[0][::-1].tolist())


# ---- turn rewards ----


def test_dual_level_by_hand() -> None:
    """Three answers, γ = ½: R of the first turns .75, .5, 0; of the second .5, 1 (the third has none)."""
    batch = [
        played(("a", [0.1, 0.1]), ("done", [0.1]), paid=(0.5, 0.5)),
        played(("a", [0.1]), ("done", [0.1]), paid=(0.0, 1.0)),
        played(("done", [0.1])),
    ]
    got = DualLevel(Given(1.0, -1.0, 2.0), gamma=0.5, weight=0.25)(batch).values
    first = (np.array([0.75, 0.5, 0.0]) - 1.25 / 3) / np.std([0.75, 0.5, 0.0], ddof=1)
    second = np.array([-1, 1]) / 2**0.5
    assert got[0].tolist() == pytest.approx([0.75 + 0.25 * first[0]] * 2 + [0.75 + 0.25 * second[0]], abs=1e-5)
    assert got[1].tolist() == pytest.approx([-0.75 + 0.25 * first[1], -0.75 + 0.25 * second[1]], abs=1e-5)
    assert got[2].tolist() == pytest.approx([1.5 + 0.25 * first[2]], abs=1e-5)


def test_dual_level_compares_within_groups_where_there_are_any() -> None:
    """Two groups of unlike pay: within each the turns are alike, over the batch they are not."""
    grouped = [played(("done", [0.1]), paid=(r,), group=g) for g, r in ((0, 0.25), (0, 0.25), (1, 1.0), (1, 1.0))]
    stream = [played(("done", [0.1]), paid=(r,), group=None) for r in (0.25, 0.25, 1.0, 1.0)]
    assert [v[0] for v in DualLevel(Given(0.0, 0.0, 0.0, 0.0))(grouped).values] == [0.0] * 4
    alone = [float(v[0]) for v in DualLevel(Given(0.0, 0.0, 0.0, 0.0))(stream).values]
    assert alone == pytest.approx([-0.4330, -0.4330, 0.4330, 0.4330], abs=1e-4)


def test_dual_level_tells_how_many_turns_stood_alone() -> None:
    """First turns are three, second ones two, and one answer has three more: 3 of 8."""
    batch = [played(*[("x", [0.1])] * n) for n in (1, 2, 5)]
    got = DualLevel(Keeper(0.0, 0.0, 0.0))(batch)
    assert got.metrics == {"mine": 1.25, "dual_level/alone": pytest.approx(3 / 8)}
    # what stands alone is not moved, and what a filter takes out is no company
    assert got.values[2].tolist()[2:] == [0.0, 0.0, 0.0]
    masked = DualLevel(Keeper(0.0, 0.0, 0.0))(Batch(batch, [True, True, False]))
    assert masked.metrics["dual_level/alone"] == pytest.approx(1 / 3)


def test_dual_level_tells_the_turn_that_was_paid() -> None:
    """The same outcome; the call that was paid gets more than the one that was not."""
    batch = [
        played(("good", [0.1]), ("x", [0.1]), ("done", [0.1]), paid=(0.5, 0.0, 0.5)),
        played(("bad", [0.1]), ("x", [0.1]), ("done", [0.1]), paid=(0.0, 0.0, 0.5)),
        played(("bad", [0.1]), ("y", [0.1]), ("done", [0.1]), paid=(0.0, 0.0, 0.5)),
    ]
    got = DualLevel(Given(0.0, 0.0, 0.0))(batch).values
    assert got[0][0] > 0.3
    assert got[1][0] < 0
    assert [float(v[1]) for v in got] == [0.0] * 3


# ---- states in common ----


def four_ways() -> list[Trajectory]:
    """Two begin alike and part; one goes its own way; a fourth is of another group."""
    return [
        played(("a", [0.1, 0.1]), ("b", [0.1]), ("1", [0.1]), paid=(0, 0, 1.0)),
        played(("a", [0.1]), ("c", [0.1]), ("2", [0.1]), paid=(0, 0, 0.0), reward=0.0),
        played(("d", [0.1]), ("b", [0.1]), ("1", [0.1]), paid=(0, 0, 0.5)),
        played(("a", [0.1]), ("b", [0.1]), ("1", [0.1]), paid=(0, 0, 1.0), group=1),
    ]


def test_salt_shares_common_steps_and_leaves_the_others() -> None:
    got = SALT(Given(1.2, -0.7, 0.3, 5.0))(four_ways())
    assert [v.tolist() for v in got.values] == [
        pytest.approx([0.25, 0.25, 1.2, 1.2]),
        pytest.approx([0.25, -0.7, -0.7]),
        pytest.approx([0.3] * 3),
        pytest.approx([5.0] * 3),
    ]
    assert got.metrics["salt/shared"] == pytest.approx(2 / 12)
    # by what was read last, "b" after "out a" and "b" after "out d" are not the same either; "1" after "out b" is
    loose = SALT(Given(1.2, -0.7, 0.3, 5.0), state="observation")(four_ways())
    assert [float(v[-1]) for v in loose.values] == pytest.approx([0.75, -0.7, 0.75, 5.0])


def test_gigpo_by_hand() -> None:
    """γ = ½: in the first state R = .25, 0, .125; after "a" R = .5 and 0; every other state is seen once."""
    got = GiGPO(Given(1.0, -1.0, 0.0, 0.0), omega=2.0, gamma=0.5, divide=False)(four_ways())
    assert got.values[0].tolist() == pytest.approx([1 + 2 * 0.125] * 2 + [1 + 2 * 0.25, 1])
    assert got.values[1].tolist() == pytest.approx([-1 - 2 * 0.125, -1 - 2 * 0.25, -1])
    assert got.values[2].tolist() == pytest.approx([0, 0, 0])
    assert got.values[3].tolist() == [0, 0, 0]
    divided = GiGPO(Given(0.0, 0.0, 0.0, 0.0), gamma=0.5)(four_ways())
    assert divided.values[0].tolist() == pytest.approx([1, 1, 2**-0.5, 0], abs=1e-4)
    assert divided.metrics["gigpo/compared"] == pytest.approx(5 / 12)


def test_where_answers_began_alike_salt_takes_the_noise_away_and_gigpo_adds_the_choice() -> None:
    """One first call in common, then a right and a wrong one: the first call decided nothing, the second all."""
    right = [played(("look", [0.1]), ("right", [0.1]), ("1", [0.1]), paid=(0, 0, 1.0)) for _ in range(2)]
    wrong = [played(("look", [0.1]), ("wrong", [0.1]), ("2", [0.1]), reward=0.0) for _ in range(2)]
    for stage in (SALT(Given(1.0, 1.0, -1.0, -1.0)), GiGPO(Given(0.0, 0.0, 0.0, 0.0), gamma=1.0, divide=False)):
        got = [v.tolist() for v in stage([*right, *wrong]).values]
        assert got[0][1] > 0.4
        assert got[2][1] < -0.4
    assert [v[0] for v in SALT(Given(1.0, 1.0, -1.0, -1.0))([*right, *wrong]).values] == [0.0] * 4


# ---- AEPO, D3S ----


def test_aepo_weighs_uncertain_tokens_more() -> None:
    """H = 1, 2, 6 and 3: mean 3, deviation √3.5; α = ½. A filtered trajectory has no part in them."""
    batch = Batch(
        [played(("done", [1.0, 2.0, 6.0])), played(("done", [3.0])), played(("done", [50.0]))], [True, True, False]
    )
    got = AEPO(Given(2.0, -1.0, 1.0), alpha=0.5)(batch).values
    z = np.array([-2.0, -1.0, 3.0]) / 3.5**0.5
    assert got[0].tolist() == pytest.approx((2 * (1 + 0.5 * z)).tolist())
    assert got[1].tolist() == pytest.approx([-1.0])
    steep = AEPO(Given(2.0, -1.0, 1.0), alpha=4.0)(batch).values
    assert steep[0][0] == 0.0


def test_the_widest_subset_is_the_best_of_all_subsets() -> None:
    from itertools import combinations

    rng = np.random.default_rng(11)
    for _ in range(20):
        values = rng.exponential(1.0, 7).tolist()
        for count in range(2, 8):
            best = max(np.var([values[i] for i in c]) for c in combinations(range(7), count))
            assert np.var([values[i] for i in widest(values, count)]) == pytest.approx(best)


def test_d3s_keeps_the_extremes_and_their_uncertain_tokens() -> None:
    """Of four answers the largest and the smallest; of their five tokens the three of largest |A|·H."""
    entropies = ([0.5, 0.1, 0.9], [9.0], [0.2, 3.0], [9.0])
    batch = [played(("done", h)) for h in entropies]
    stage = D3S(Given(1.0, 0.2, -2.0, 0.1), trajectories=0.5, tokens=0.6, relax_over=2)
    assert [v.tolist() for v in stage(batch).values] == [[1.0, 0.0, 1.0], [0.0], [0.0, -2.0], [0.0]]
    # |A|·H = .5, .1, .9, .4, 6: the half-way batch keeps ¾ of four answers and .8 of the tokens, the third all
    assert sum(np.count_nonzero(v) for v in stage(batch).values) == 5
    assert all((v != 0).all() for v in stage(batch).values)
    again = D3S(Given(1.0, 0.2, -2.0, 0.1), trajectories=0.5, tokens=0.6, relax_over=2)
    again.load_state_dict({"inner": {}, "batches": 1})
    assert sum(np.count_nonzero(v) for v in again(batch).values) == 5


def test_aepo_by_default_and_what_it_tells() -> None:
    """H = 1, 3, 2, 2, 5: mean 2.6, deviation √1.84; α = .2. The inner metrics go along."""
    got = AEPO(Keeper(1.5, -0.5))([played(("done", [1.0, 3.0])), played(("done", [2.0, 2.0, 5.0]))])
    factors = [1 + 0.2 * (h - 2.6) / 1.84**0.5 for h in (1.0, 3.0, 2.0, 2.0, 5.0)]
    assert np.concatenate(got.values).tolist() == pytest.approx(
        [a * f for a, f in zip((1.5, 1.5, -0.5, -0.5, -0.5), factors, strict=True)]
    )
    assert got.metrics == {"mine": 1.25, "aepo/entropy": pytest.approx(2.6)}


def test_d3s_chooses_within_groups_where_there_are_any() -> None:
    """Of (.1, .2, .3, .25) and (2, −1.9, 1.5, −1) two each; without groups four of all eight."""
    advantages = (0.1, 0.2, 0.3, 0.25, 2.0, -1.9, 1.5, -1.0)

    def kept(group: bool, **options: Any) -> tuple[list[float], dict[str, float]]:
        batch = [played(("done", [0.7]), group=place // 4 if group else None) for place in range(8)]
        stage = D3S(Keeper(*advantages), **options)
        first, again = stage(batch), stage(batch)
        assert [v.tolist() for v in first.values] == [v.tolist() for v in again.values]  # nothing is relaxed
        return [float(v[0]) for v in first.values], dict(first.metrics)

    told = {"mine": 1.25, "d3s/trajectories": 0.5}
    assert kept(True, tokens=0.75) == ([0, 0, 0.3, 0, 2.0, -1.9, 0, 0], {**told, "d3s/tokens": 0.75})
    assert kept(True) == ([0, 0, 0, 0, 2.0, -1.9, 0, 0], {**told, "d3s/tokens": 0.5})
    assert kept(True, tokens=0.1) == ([0, 0, 0, 0, 2.0, 0, 0, 0], {**told, "d3s/tokens": 0.25})
    assert kept(False, tokens=1.0) == ([0, 0, 0, 0, 2.0, -1.9, 1.5, -1.0], {**told, "d3s/tokens": 1.0})


def test_d3s_takes_exact_entropies_and_gives_its_inner_state_back() -> None:
    batch = [played(("done", [0.7, 0.7])), played(("done", [0.7]))]
    exact = [np.array([0.1, 5.0]), np.array([0.3])]
    stage = D3S(Keeper(1.0, -1.0), tokens=0.3, entropy="exact", entropies=lambda batch: exact)
    assert [v.tolist() for v in stage(batch).values] == [[0.0, 1.0], [0.0]]
    stage.load_state_dict({"inner": {"a": 7}, "batches": 3})
    assert stage.inner.loaded == {"a": 7}  # type: ignore[attr-defined]


# ---- DCPO, BNPO, SEED ----


def test_bnpo_tells_what_it_divided_by() -> None:
    """Two groups, the second all right: one of two is alike. The stream tells its α and β."""
    batch = [*rewarded([1, 0, 0]), *rewarded([1, 1], group=1)]
    metrics = BNPO()(batch).metrics
    assert metrics["advantage/degenerate"] == 0.5
    assert len(metrics) > 1
    stream = [played(("done", [0.1]), reward=r, value=v, event=e) for e, (r, v) in enumerate([(1, 0.2), (0, 0.7)])]
    alpha, beta = shape([0.2, 0.7])
    told = BNPOStream(ValueTracker())(stream).metrics
    assert (told["bnpo/alpha"], told["bnpo/beta"]) == (alpha, beta)
    # At the border a density of powers 0 is whole, any other is nothing.
    assert [density(p, 1.0, 2.0) for p in (0.0, 1.0)] == pytest.approx([2.0, 0.0])


def rewarded(rewards: Sequence[float], **fields: Any) -> list[Trajectory]:
    return [played(("done", [0.1]), reward=r, **fields) for r in rewards]


def test_dcpo_standardisation_remembers_the_prompt() -> None:
    """(1, 0, 0, 0), then four right, then (1, 1, 0, 1). An all-right group still counts by its history."""
    smooth = DCPO()
    one = [float(v[0]) for v in smooth(rewarded([1, 0, 0, 0])).values]
    assert one == pytest.approx([1.5, -0.5, -0.5, -0.5])
    two = [float(v[0]) for v in smooth(rewarded([1, 1, 1, 1])).values]
    assert two == pytest.approx([0.362284] * 4, abs=1e-6)
    copy = DCPO()
    copy.load_state_dict(smooth.state_dict())
    for one_more in (smooth, copy):
        three = [float(v[0]) for v in one_more(rewarded([1, 1, 0, 1])).values]
        assert three == pytest.approx([0.559001, 0.559001, -1.402671, 0.559001], abs=1e-6)
    assert [float(v[0]) for v in DCPO()(rewarded([1, 1, 1])).values] == [0.0] * 3


def test_bnpo_worked_numbers() -> None:
    """algorithms.md: p = (.2, .5, .8): α = β = 1.52778, f = 1.01678 and 1.28683; r = 1 at p = .2: A = .78679."""
    alpha, beta = shape([0.2, 0.5, 0.8])
    assert (alpha, beta) == pytest.approx((1.52778, 1.52778), abs=1e-5)
    assert [density(p, alpha, beta) for p in (0.2, 0.5, 0.8)] == pytest.approx([1.01678, 1.28683, 1.01678], abs=1e-5)
    batch = [
        played(("done", [0.1]), reward=r, value=p, event=i) for i, (r, p) in enumerate(((1, 0.2), (0, 0.5), (1, 0.8)))
    ]
    got = [float(v[0]) for v in BNPOStream(ValueTracker())(Batch(batch)).values]
    assert got == pytest.approx([0.78679, -0.5 / 1.28683, 0.2 / 1.01678], abs=1e-5)


def test_bnpo_of_groups_is_the_density_bounded_from_below() -> None:
    rewards = ((0, [1.0, 0.0, 0.0, 0.0]), (1, [1.0, 1.0, 0.0, 1.0]), (2, [1.0] * 4), (3, [0.0, 1.0]))
    batch = [t for g, r in rewards for t in rewarded(r, group=g, task=f"t{g}")]
    rates = [0.25, 0.75, 1.0, 0.5]
    got = [float(v[0]) for v in BNPO()(batch).values]
    alpha, beta = shape(rates)
    assert alpha > beta  # most are easy
    of_beta = torch.distributions.Beta(torch.tensor(alpha).double(), torch.tensor(beta).double())
    f = [max(of_beta.log_prob(torch.tensor(p).double()).exp().item(), 0.1) for p in rates]
    expected = [(r - p) / d for (_, rs), p, d in zip(rewards, rates, f, strict=True) for r in rs]
    assert got == pytest.approx(expected)
    even = [float(v[0]) for v in BNPO()(rewarded([1.0, 0.0, 0.0, 0.0])).values]
    assert even == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert shape([0.0, 1.0]) == (1.0, 1.0)
    narrow = [played(("done", [0.1]), reward=r, value=0.4 + 1e-5 * i, event=i) for i, r in enumerate((1.0, 0.0, 0.0))]
    got = [float(v[0]) for v in BNPOStream(ValueTracker(), floor=0.25)(Batch(narrow)).values]
    assert got == pytest.approx([0.15, -0.1, -0.1], abs=1e-4)  # a density of thousands, bounded by 4


def test_seed_is_careful_where_the_answers_differ() -> None:
    """Of four: all alike 0; 3 against 1: −(log ¾ + log ¼)/2 = .83699; all different log 4."""
    assert semantic_entropy(["7", "7 ", "7", "7"]) == 0.0
    assert semantic_entropy(["7", "7", None, "7"]) == pytest.approx(0.83699, abs=1e-5)
    assert semantic_entropy(["1", "2", "3", "4"]) == pytest.approx(math.log(4))
    batch = [played(("done", [0.1]), group=g, answer=a) for g, a in ((0, "1"), (0, "1"), (1, "1"), (1, "2"), (2, "5"))]
    given = (1.0, -1.0, 1.0, -2.0, 3.0)
    linear = [float(v[0]) for v in SEED(Given(*given), alpha=0.4)(batch).values]
    assert linear == pytest.approx([1.0, -1.0, 0.6, -1.2, 3.0])
    told = SEED(Keeper(*given))(batch).metrics
    assert told == {"mine": 1.25, "seed/semantic_entropy": pytest.approx(0.5)}  # of two groups that can differ
    smooth = [float(v[0]) for v in SEED(Given(*given), alpha=0.4, form="exponential")(batch).values]
    assert smooth[2:4] == pytest.approx([math.exp(-0.4), -2 * math.exp(-0.4)])


def test_what_compares_needs_groups() -> None:
    alone = [played(("done", [0.1]), group=None)]
    for method in (SALT(Given(1.0)), GiGPO(Given(1.0)), SEED(Given(1.0)), DCPO(), BNPO()):
        with pytest.raises(UserError, match="has no group"):
            method(alone)
    with pytest.raises(UserError, match="'dcpo' is no stage"):
        estimator("spo", ("dcpo",), {}, ValueTracker(), lambda batch: [])
