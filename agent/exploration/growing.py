"""A tree of episodes, played wave by wave: the mechanism that every strategy that branches shares.

A wave gives each limb that still lives one turn:
1. the policy samples the turn of every limb;
2. the plan says, limb by limb in the order of their numbers, how many others shall part from it before this turn;
3. those sample a turn of their own behind the same beginning (what is too much like the limb's is pruned);
4. the survivors copy the limb's ledger and its environment, interpreter and all (`env.fork()`);
5. every limb's turn goes to its environment.
Where nothing lives and leaves are missing, the plan says how many more begin at the prompt. Decisions fall in a fixed
order and draw from one seeded generator, so a tree depends on its seed and the policy, and not on the machine's timing.
What limbs share was sampled, executed and paid for once: the budget `tokens` counts it once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine, Sampling
from solostream.agent.exploration.entropy import first_entropy
from solostream.agent.exploration.tree import Branch, Tree
from solostream.agent.rollout import Sampled, fit_to, sample_turn, seed_of, take_turn
from solostream.agent.trajectory import Dispatch, Ending, TokenRecord, Trajectory
from solostream.envs.rewards.episode import RewardError
from solostream.envs.text_env import ForkableEnv, TextEnv
from solostream.envs.types import Grading, Step
from solostream.errors import UserError

_trees = itertools.count()


@dataclass(slots=True, eq=False)
class Limb:
    """One leaf in the making. entropies: of its turns, the shared ones too, each over its first tokens (`window`)."""

    env: Any
    ledger: TokenRecord
    path: tuple[int, ...]
    seed: int
    key: str
    parent: str | None = None
    forks: tuple[int, ...] = ()
    turn: Sampled | None = None
    entropies: list[float] = field(default_factory=list)
    forked: list[bool] = field(default_factory=list)  # turn by turn, whether another limb parted there
    step: Step | None = None
    ending: Ending | None = None
    grading: Grading | None = None


class TreePlan(Protocol):
    """Where a tree forks. leaves: how many it grows; tokens: sampled by all of it, 0 for no limit."""

    leaves: int
    tokens: int
    window: int  # tokens at the head of a turn over which its entropy is estimated

    def trunks(self, limbs: Sequence[Limb]) -> int:
        """Nothing lives: how many more limbs begin at the prompt; at least one while leaves are missing."""
        ...

    def branches(self, limb: Limb, limbs: Sequence[Limb], draw: random.Random) -> int:
        """How many others part from `limb` before the turn that it has just sampled."""
        ...

    def keeps(self, turn: Sampled, other: Sampled) -> bool:
        """Whether a branch whose first turn is `other`, beside the limb's own `turn`, is worth a leaf."""
        ...


class Growth:
    """One tree while it grows; the limbs in the order in which they began."""

    def __init__(
        self, plan: TreePlan, engine: Engine, chat: Chat, sampling: Sampling, max_tokens: int, seed: int, seedling: Any
    ) -> None:
        """seedling: the environment, reset; it is copied, never stepped."""
        self.plan, self.pruned = plan, 0
        self._engine, self._chat, self._sampling, self._max_tokens = engine, chat, sampling, max_tokens
        self._seed, self._seedling, self._name = seed, seedling, f"tree-{next(_trees)}"
        self._draw = random.Random(seed_of(seed, "branching"))
        self._tries = itertools.count()
        self._sampled = 0
        self._first: TokenRecord = TokenRecord()
        self.limbs: list[Limb] = []

    async def run(self, opening: TokenRecord) -> None:
        """Until every limb has ended and no leaf is missing. Raises SandboxError, EngineError."""
        self._first = opening
        if len(opening.token_ids) >= self._max_tokens:  # the prompt alone fills the ledger
            await self._plant(self.plan.leaves)
            for limb in self.limbs:
                limb.ending = "token_limit"
            return
        while True:
            living = [limb for limb in self.limbs if limb.ending is None]
            if not living and not await self._plant(self.plan.trunks(self.limbs)):
                return
            living = living or [limb for limb in self.limbs if limb.ending is None]
            await together(self._sample(limb) for limb in living)
            living += await self._branch(living)
            await together(self._act(limb) for limb in living)

    def _room(self) -> int:
        """Leaves that may still begin."""
        spent = self.plan.tokens and self._sampled >= self.plan.tokens
        return 0 if spent and self.limbs else self.plan.leaves - len(self.limbs)

    async def _plant(self, wanted: int) -> bool:
        """Limbs that begin at the prompt; whether there is one more now."""
        for _ in range(min(wanted, self._room())):
            number = len(self.limbs)
            limb = Limb(None, self._first.fork(), (number,), seed_of(self._seed, "trunk", number), self._key())
            self.limbs.append(limb)  # before anything can fail: it is closed with the others
            limb.env = await self._seedling.fork()
        return any(limb.ending is None for limb in self.limbs)

    def _key(self) -> str:
        return f"{self._name}/{next(self._tries)}"

    async def _sample(self, limb: Limb) -> None:
        sampling = replace(self._sampling, key=limb.key, parent=limb.parent)
        limb.turn = await sample_turn(
            limb.env, self._engine, self._chat, limb.ledger, sampling, self._max_tokens, limb.seed
        )
        limb.entropies.append(first_entropy(limb.turn.logprobs, self.plan.window, len(self._chat.tokenizer)))
        limb.forked.append(False)
        self._sampled += len(limb.turn.ids)

    async def _branch(self, living: Sequence[Limb]) -> list[Limb]:
        """What parts from `living` before the turns that they have sampled; each has a turn of its own."""
        tried: list[tuple[Limb, Limb]] = []
        for limb in living:
            wanted = self.plan.branches(limb, self.limbs, self._draw) if self._room() > len(tried) else 0
            for _ in range(min(wanted, self._room() - len(tried))):
                tried.append((limb, self._bud(limb)))
        await together(self._sample(bud) for _, bud in tried)
        grown = []
        for limb, bud in tried:
            assert limb.turn is not None
            assert bud.turn is not None
            if not self.plan.keeps(limb.turn, bud.turn):
                self.pruned += len(bud.turn.ids)
                await self._engine.release(bud.key)
                continue
            bud.path = (*limb.path, len(self.limbs))
            bud.forks = (*limb.forks, len(limb.ledger.token_ids))
            if limb.forks and limb.forks[-1] == bud.forks[-1]:  # it shares nothing that is the limb's own
                bud.path, bud.forks = (*limb.path[:-1], bud.path[-1]), limb.forks
            limb.forked[-1] = bud.forked[-1] = True
            self.limbs.append(bud)
            bud.env = await limb.env.fork()
            grown.append(bud)
        return grown

    def _bud(self, limb: Limb) -> Limb:
        seed = seed_of(self._seed, "branch", key := self._key().partition("/")[2])
        bud = Limb(limb.env, limb.ledger.fork(), limb.path, seed, f"{self._name}/{key}", limb.key, limb.forks)
        bud.entropies, bud.forked = limb.entropies[:-1], limb.forked[:-1]
        return bud

    async def _act(self, limb: Limb) -> None:
        assert limb.turn is not None
        try:
            limb.step, limb.ending = await take_turn(limb.env, self._chat, limb.ledger, limb.turn, self._max_tokens)
        except RewardError as error:  # the episode was played; only nobody can say what it is worth
            limb.ending, limb.grading = "infra", Grading(failure=str(error))

    async def close(self) -> None:
        """Give back every copy of the environment, and what the engine keeps."""
        for limb in self.limbs:
            await self._engine.release(limb.key)
            if limb.env is not None:
                await limb.env.aclose()


async def grow(
    plan: TreePlan,
    env: TextEnv,
    engine: Engine,
    chat: Chat,
    *,
    sampling: Sampling,
    max_tokens: int,
    task_id: str | None,
    dispatch: Dispatch,
    seed: int,
) -> Tree:
    """Play a tree; leaf i is dispatched as event `dispatch.event` + i.

    Raises EngineError, SandboxError (there is no half a tree), and UserError for an environment that cannot fork.
    """
    if not isinstance(env, ForkableEnv):
        raise UserError(f"a {type(env).__name__} cannot branch: it has no fork(); set rollout.strategy = 'episode'")
    fit_to(chat, env)
    sampling = replace(sampling, stop=env.stops, stop_token_ids=chat.stop_token_ids)
    _, info = await env.areset(seed=seed, options=None if task_id is None else {"task_id": task_id})
    opening = TokenRecord()
    said = "\n\n".join(message["content"] for message in info["messages"])
    opening.add_observation("user", chat.open(info["messages"], env.tools), said)
    growth = Growth(plan, engine, chat, sampling, max_tokens, seed, env)
    try:
        await growth.run(opening)
        leaves = tuple(_leaf(limb, growth.limbs, env, engine, info["task_id"], dispatch) for limb in growth.limbs)
        scored = tuple(limb.step is not None and limb.step.ending is not None for limb in growth.limbs)
        return Tree(leaves, scored, growth.pruned)
    finally:
        await growth.close()


async def played(
    plan: Any, env: TextEnv, engine: Engine, chat: Chat, dispatch: Dispatch | None, episode: dict[str, Any]
) -> Tree:
    """`grow` as a strategy is called: nothing is tried again inside a tree, so `retries` has no meaning there."""
    given: dict[str, Any] = {"task_id": None, "seed": 0, **episode}
    given.pop("retries", None)
    sampling: Sampling = given.pop("sampling")
    return await grow(plan, env, engine, chat, sampling=sampling, dispatch=dispatch or Dispatch(), **given)


def _leaf(
    limb: Limb, limbs: Sequence[Limb], env: TextEnv, engine: Engine, task_id: str, dispatch: Dispatch
) -> Trajectory:
    assert limb.ending is not None
    return limb.ledger.close(
        task_id,
        0.0 if limb.ending == "infra" else limb.ledger.earned,
        limb.ending,
        dispatch=replace(dispatch, event=dispatch.event + limb.path[-1]),
        seed=limb.seed,
        source=getattr(env.task, "source", ""),
        answer=limb.step.answer if limb.step else None,
        unit=getattr(engine, "unit", "tokens"),
        grading=limb.grading or (limb.step.grading if limb.step else None),
        branch=Branch(dispatch.event, len(limbs), limb.path, limb.forks),
    )


async def together(work: Iterable[Awaitable[None]]) -> None:
    """All at once; where one fails the others are stopped before its error goes on."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
