"""Trees of episodes with a real interpreter: what branches share, what they do not, and where each method forks."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest
from dice import DiceEngine

from solostream import registry
from solostream.agent.chat_template import Chat
from solostream.agent.engine import Sampling
from solostream.agent.engines.vllm.server import ServerEngine
from solostream.agent.exploration.aepo import AEPO, penalised, root_budget
from solostream.agent.exploration.arpo import ARPO, probability
from solostream.agent.exploration.entropy import first_entropy
from solostream.agent.exploration.growing import Limb
from solostream.agent.exploration.latr import LATR, edit_distance
from solostream.agent.exploration.tree import Branch, Tree, gathered, sampled_once
from solostream.agent.rollout import Sampled
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory
from solostream.envs import workspace
from solostream.envs.text_env import TextEnvAdapter
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import Task
from solostream.errors import SandboxError, UserError
from solostream.sandbox.fork import ForkSandbox

TASK = Task("t", "Q?", "7")
STEPS = (2, 3, 5, 11)


def table(text: str) -> list[tuple[str, float]]:
    """Three turns that each add one of four numbers to x, then an answer."""
    if text.count("<|im_start|>assistant") > 3:
        return [("It is \\boxed{7}", 0.5), ("It is \\boxed{8}", 0.5)]
    return [(f"```python\nx = globals().get('x', 0) + {k}\nprint(x)\n```", 0.25) for k in STEPS]


def added(leaf: Trajectory) -> list[int]:
    return [int(turn.text.partition("+ ")[2].split()[0]) for turn in leaf.turns if turn.calls]


def printed(leaf: Trajectory) -> list[int]:
    return [int(e.stdout) for turn in leaf.turns for e in turn.executions if e is not None]


@pytest.fixture
def env() -> Iterator[ToolEnv]:
    made = ToolEnv([TASK], max_turns=5, sandbox_options={"preimport": ["math"]})
    yield made
    made.close()


async def play(env: Any, name: str, options: dict[str, Any], *, leaves: int = 6, seed: int = 5, **given: Any) -> Tree:
    engine = given.pop("engine", None) or DiceEngine(table)
    strategy = registry.bind("rollout", name, options, leaves=leaves)
    episode = {"sampling": Sampling(200), "max_tokens": 4000, "task_id": "t", "seed": seed, "retries": 0, **given}
    tree = await strategy(env, engine, Chat(engine.tokenizer), dispatch=Dispatch(40, 0.3, 2, 7), **episode)
    assert isinstance(tree, Tree)
    return tree


async def test_a_branch_goes_on_from_the_interpreter_as_it_was(env: ToolEnv) -> None:
    engine = DiceEngine(table)
    tree = await play(env, "segments", {}, leaves=8, engine=engine)
    assert [leaf.branch.path for leaf in tree.leaves][:4] == [(0,), (0, 1), (0, 2), (0, 1, 3)]
    for leaf in tree.leaves:
        steps = added(leaf)
        assert printed(leaf) == [sum(steps[: i + 1]) for i in range(3)]  # x is its own, and what it inherited
        parent, own = tree.leaves[leaf.branch.path[-2] if leaf.branch.forks else leaf.branch.leaf], leaf.branch.own_from
        for column in ("token_ids", "action_mask", "versions"):
            assert getattr(leaf, column)[:own].tolist() == getattr(parent, column)[:own].tolist()
        assert leaf.reward == float("7" in leaf.turns[-1].text)
        assert (leaf.dispatch.event, leaf.dispatch.group, leaf.dispatch.value) == (40 + leaf.branch.leaf, 7, 0.3)
        assert Trajectory.from_dict(leaf.to_dict()) == leaf
    assert len({leaf.token_ids.tobytes() for leaf in tree.leaves}) > 4
    # Budgets count once: every request is one of a leaf's own turns, and every token that was sampled is one of them.
    own = sum(len([t for t in leaf.turns if t.role == "assistant" and t.start >= leaf.branch.own_from])
              for leaf in tree.leaves)  # fmt: skip
    assert len(engine.requests) == own == 1 + 2 + 4 + 8
    assert sampled_once(tree.leaves) < sum(leaf.n_action_tokens for leaf in tree.leaves)
    parents = {one.parent for one in engine.requests} - {None}
    assert parents <= {one.key for one in engine.requests}
    assert sorted(engine.released) == sorted({one.key for one in engine.requests})


async def test_a_tree_depends_on_its_seed_alone(env: ToolEnv) -> None:
    """Whatever ends first: the second engine answers in another order."""

    class Shuffled(DiceEngine):
        async def generate(self, prompt_ids, sampling):
            for _ in range(random.randrange(5)):
                await asyncio.sleep(0)
            return await super().generate(prompt_ids, sampling)

    def told(tree: Tree) -> list[Any]:
        return [(leaf.branch, leaf.token_ids.tolist(), leaf.reward, leaf.seed) for leaf in tree.leaves]

    for name in ("arpo", "aepo", "latr"):
        one = await play(env, name, {})
        assert told(one) == told(await play(env, name, {}, engine=Shuffled(table)))
        assert told(one) != told(await play(env, name, {}, seed=6))


class Replaying(ForkSandbox):
    """A backend that does not claim to fork, and counts what it runs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(preimport=["math"], **options)
        self.ran: list[str] = []

    @property
    def claims(self):
        return super().claims - {"fork"}

    async def open(self):
        session = await super().open()
        run = session.run

        async def counted(code: str, **options: Any):
            self.ran.append(code)
            return await run(code, **options)

        session.run = counted
        return session


async def test_without_a_fork_the_calls_are_replayed(env: ToolEnv) -> None:
    made: list[Replaying] = []

    def open_one(**options: Any) -> Replaying:
        made.append(Replaying(**options))
        return made[0]

    replaying = ToolEnv([TASK], max_turns=5, sandbox=open_one)
    forked, replayed = await play(env, "arpo", {}), await play(replaying, "arpo", {})
    await replaying.aclose()
    assert [one.token_ids.tolist() for one in replayed.leaves] == [one.token_ids.tolist() for one in forked.leaves]
    own = [turn for leaf in replayed.leaves for turn in leaf.turns if turn.calls and turn.start >= leaf.branch.own_from]
    before = [
        turn for leaf in replayed.leaves for turn in leaf.turns if turn.calls and turn.start < leaf.branch.own_from
    ]
    assert before
    assert len(made[0].ran) == len(own) + len(before)
    assert made[0].ran.count(added_code(replayed.leaves[0])) > 1


def added_code(leaf: Trajectory) -> str:
    return next(turn.calls[0].code for turn in leaf.turns if turn.calls)


def test_a_branch_is_asked_of_its_parents_server() -> None:
    engine = ServerEngine(None, ["one", "two", "three"], "m", None, 100, 0, {}, "/v1/completions")
    homes = {key: engine._home(key) for key in ("a", "b", "c")}
    assert sorted(homes.values()) == ["one", "three", "two"]
    assert engine._home("b/1", "b") == homes["b"]
    assert engine._home("b/1/1", "b/1") == homes["b"]
    engine.alive.remove(homes["b"])
    assert engine._home("b/2", "b") in engine.alive


async def test_the_budget_of_a_tree_counts_shared_tokens_once(env: ToolEnv) -> None:
    whole = await play(env, "segments", {})
    tree = await play(env, "segments", {"tokens": 150})
    assert sampled_once(tree.leaves) < sampled_once(whole.leaves)
    assert 1 <= len(tree.leaves) < 6
    assert {leaf.branch.leaves for leaf in tree.leaves} == {len(tree.leaves)}


async def test_what_fails_takes_the_whole_tree_along_and_closes_it(env: ToolEnv, monkeypatch) -> None:
    engine, calls = DiceEngine(table), 0
    step = ToolEnv.astep

    async def failing(self, text: str):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise SandboxError("gone")
        return await step(self, text)

    monkeypatch.setattr(ToolEnv, "astep", failing)
    with pytest.raises(SandboxError, match="gone"):
        await play(env, "segments", {}, engine=engine)
    assert sorted(engine.released) == sorted({one.key for one in engine.requests})
    loop = asyncio.get_running_loop()
    users = [shared.users for key, shared in workspace._shared.items() if key[2] is loop]
    assert users == [1]  # every copy gave its sandbox back; the one that was copied keeps it for the next tree
    await env.aclose()


async def test_an_environment_of_gymnasium_branches_with_its_wrappers() -> None:
    class Counter(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Text(100)

        def reset(self, *, seed=None, options=None):
            self.said = []
            return "count", {}

        def step(self, action):
            self.said.append(action)
            return " ".join(self.said), float(len(set(self.said)) == 3), len(self.said) == 3, False, {}

    class Once(gymnasium.Wrapper):
        steps = 0

        def step(self, action):
            self.steps += 1
            return super().step(action)

    env = TextEnvAdapter(Once(Counter()))
    engine = DiceEngine(lambda text: [("a", 0.3), ("b", 0.3), ("c", 0.4)])
    tree = await play(env, "segments", {}, leaves=4, engine=engine, task_id="seed/3")
    for leaf in tree.leaves:
        said = [turn.text for turn in leaf.turns if turn.role == "assistant"]
        assert leaf.reward == float(len(set(said)) == 3)
        assert [turn.text for turn in leaf.turns if turn.role == "user"] == ["count", said[0], " ".join(said[:2])]
    assert env.env.steps == 0  # the one that was given is copied, never stepped


async def test_an_environment_that_cannot_be_copied_is_refused() -> None:
    class Plain:
        stops = tools = ()

    with pytest.raises(UserError, match=r"rollout\.strategy = 'episode'"):
        await play(Plain(), "segments", {})


def test_arpos_numbers() -> None:
    assert probability(0.5, 0.2, 0.55, 0.30) == pytest.approx(0.55)
    assert probability(0.5, 0.2, 0.25, 0.30) == pytest.approx(0.49)
    assert probability(0.5, 3.0, 0.9, 0.1) == 1.0
    # two tokens of probability 1/2 and 1/8, of a vocabulary of 16: (1 + 3)/2 of 4 bits; the third is beyond the window
    logs = [math.log(1 / 2), math.log(1 / 8), math.log(1 / 3)]
    assert first_entropy(logs, 2, 16) == pytest.approx(0.5)
    assert first_entropy([], 2, 16) == first_entropy([math.nan], 2, 16) == 0.0


def limb(*entropies: float, forked: tuple[bool, ...] = ()) -> Limb:
    made = Limb(None, TokenRecord(), (0,), 0, "k")
    made.entropies, made.forked = list(entropies), list(forked or [False] * len(entropies))
    return made


def test_arpo_branches_as_often_as_its_probability_says() -> None:
    plan, draw = ARPO(8, alpha=0.3, beta=0.5), random.Random(1)
    hot, cold = limb(0.2, 0.8), limb(0.2, 0.1)
    assert sum(plan.branches(hot, [hot], draw) for _ in range(4000)) / 4000 == pytest.approx(0.6, abs=0.03)
    assert sum(plan.branches(cold, [cold], draw) for _ in range(4000)) / 4000 == pytest.approx(0.25, abs=0.03)
    assert plan.branches(limb(0.9), [], draw) == 0  # no tool has spoken yet
    strict = ARPO(8, alpha=0.3, beta=0.5, tau=0.3)
    assert not any(strict.branches(cold, [cold], draw) for _ in range(200))
    assert (plan.trunks([]), plan.trunks([hot] * 6)) == (4, 2)
    with pytest.raises(UserError, match="set initial lower"):
        ARPO(4, initial=4)


def test_aepos_numbers() -> None:
    """m = 16·σ(5·(0.4 − 0.3)) = 16·0.62246; P behind two branches in a row: 0.6·(1 − 0.1)."""
    assert root_budget(16, 5.0, 0.4, [0.2, 0.4]) == pytest.approx(9.95935, abs=1e-5)
    assert root_budget(16, 5.0, 0.4, []) == 8
    assert penalised(0.6, 2, 0.05) == pytest.approx(0.54)
    assert penalised(0.6, 30, 0.05) == 0.0
    plan = AEPO(16)
    assert plan.trunks([]) == 1
    assert plan.trunks([limb(0.4, 0.2, 0.4)]) == 9  # ten with the one that measured
    assert plan.trunks([limb(0.9, 0.0)]) == 15 - 1  # one leaf at least is left to branch
    assert plan.trunks([limb(0.0, 0.9)]) == 2 - 1
    draw = random.Random(2)
    measuring, other = limb(0.2, 0.4), limb(0.2, 0.4, 0.4, 0.4, forked=(False, True, True, False))
    plan = AEPO(16, alpha=0.5, gamma=0.5, penalty=0.3)
    assert not any(plan.branches(measuring, [measuring], draw) for _ in range(200))
    shares = sum(plan.branches(other, [measuring, other], draw) for _ in range(4000)) / 4000
    assert shares == pytest.approx(0.6 * 0.4, abs=0.03)


async def test_aepo_begins_anew_where_the_question_is_open_and_branches_where_the_outputs_are(env: ToolEnv) -> None:
    """Eight leaves, H = log 4/log 258 = .25 where it is open, else 0. m = 8·σ(5·.25) = 6.2 trunks of an open question;
    8·σ(−5·.25/2) = 2.8 where one of the two turns behind an output is open: the others are branches of these.
    """

    def unsure_at(turn: int) -> DiceEngine:
        def texts(text: str) -> list[tuple[str, float]]:
            said = text.count("<|im_start|>assistant") - 1
            if said == 2:
                return [("It is \\boxed{7}", 1.0)]
            code = "```python\nx = globals().get('x', 0) + {k}\nprint(x)\n```"
            return (
                [(code.replace("{k}", str(k)), 0.25) for k in STEPS]
                if said == turn
                else [(code.replace("{k}", "1"), 1.0)]
            )

        return DiceEngine(texts)

    options = {"window": 1, "alpha": 1.0, "penalty": 0.0}
    for turn, trunks in ((0, 6), (1, 3)):
        tree = await play(env, "aepo", options, leaves=8, engine=unsure_at(turn))
        assert len({leaf.branch.trunk for leaf in tree.leaves}) == trunks
        assert len(tree.leaves) == 8


def test_latr_prunes_what_is_alike() -> None:
    assert edit_distance([1, 2, 3, 4], [2, 3, 5, 4]) == 2
    assert edit_distance([], [7, 7]) == 2
    plan = LATR(4, look_ahead=4, distance=0.5)
    first = Sampled([1, 2, 3, 4, 9, 9], [], [])
    assert not plan.keeps(first, Sampled([2, 3, 5, 4, 1, 1], [], []))  # 2 of 4: not beyond half
    assert plan.keeps(first, Sampled([5, 6, 3, 7, 9, 9], [], []))


async def test_what_latr_prunes_is_counted_and_makes_room_for_others(env: ToolEnv) -> None:
    def sure(text: str) -> list[tuple[str, float]]:
        (first, _), (second, _), *_ = table(text)
        return [(first, 0.8), (second, 0.2)]

    tree = await play(env, "latr", {"look_ahead": 60, "distance": 0.0}, engine=DiceEngine(sure))
    assert tree.pruned > 0
    assert len(tree.leaves) == 6
    for leaf in tree.leaves:
        if leaf.branch.forks:
            parent = tree.leaves[leaf.branch.path[-2]]
            at = [t.start for t in leaf.turns].index(leaf.branch.own_from)
            assert leaf.turns[at].text != parent.turns[at].text


def test_owners_and_common_beginnings() -> None:
    a, b, c = Branch(4, 5, (0, 2), (40,)), Branch(4, 5, (0, 2, 3), (40, 65)), Branch(4, 5, (0, 4), (20,))
    assert [b.owner(at) for at in (0, 39, 40, 64, 65, 900)] == [0, 0, 2, 2, 3, 3]
    assert (a.common(b), b.common(a), a.common(c), a.common(a)) == (65, 65, 20, math.inf)
    assert Branch(4, 5, (0,)).common(a) == 40
    assert Branch(4, 5, (1,)).common(a) == 0


async def test_a_tree_that_was_cut_off_while_it_was_written_is_no_tree(env: ToolEnv) -> None:
    tree = await play(env, "segments", {}, leaves=3)
    assert [len(one.leaves) for one in gathered(reversed(tree.leaves))] == [3]
    assert gathered(tree.leaves[:2]) == []
