"""Contracts of what an episode is made of: tools, environments, rewards, texts, data, engines, ways to play."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

from solostream import registry
from solostream.agent.chat_template import Chat
from solostream.agent.engine import Sampling
from solostream.agent.engines.scripted import ScriptedEngine
from solostream.agent.engines.spec import open_engine
from solostream.agent.exploration.tree import Tree
from solostream.agent.tokenization import encode
from solostream.agent.trajectory import Trajectory
from solostream.envs import making
from solostream.envs.data.generators import Maker, Side
from solostream.envs.text.answers import check_style, extractor
from solostream.envs.text.parse import Parser
from solostream.envs.text.syntax import syntax
from solostream.envs.tool_env import ToolEnv
from solostream.envs.tools import Tool, json_schema, make_tools, wrong_arguments
from solostream.envs.types import Task

Promises = list[tuple[str, bool]]
TASK = Task("contract/1", "What is 6 times 7?", "42")
TURNS = ("```python\nprint(6 * 7)\n```", "It is \\boxed{42}.\nAnswer: 42\n<answer>42</answer>")


def tool(spec: str, options: dict[str, Any]) -> Promises:
    """Its name, description and schema, which arguments it requires, and that calling it is a coroutine.

    Of a source of several tools each.
    """
    return [promise for made in make_tools({"tool": spec, **options}) for promise in _of_tool(made)]


def _of_tool(made: Tool) -> Promises:
    schema = json_schema(made)["function"]["parameters"]
    required = list(made.parameters.get("required", ()))
    return [
        ("its name is an identifier", made.name.isidentifier()),
        ("it has a description", bool(made.description.strip())),
        ("its parameters are the JSON schema of an object", schema.get("type") == "object" and "properties" in schema),
        ("what it requires is declared", set(required) <= set(schema.get("properties", {}))),
        ("a missing argument is noticed", not required or wrong_arguments(made, {}) is not None),
        ("its call is a coroutine", asyncio.iscoroutinefunction(type(made).__call__)),
    ]


def environment(spec: str, options: dict[str, Any]) -> Promises:
    """Tasks, resets by id that open alike, turns of text with finite rewards, and a trace."""
    env = making.make(spec, options)
    try:
        tasks = env.tasks
        asked = {"task_id": tasks[0].id}
        first, info = env.reset(seed=1, options=dict(asked))
        again, _ = env.reset(seed=1, options=dict(asked))
        observation, reward, terminated, truncated, after = env.step(TURNS[1])
        return [
            ("it has tasks", len(tasks) > 0),
            ("reset begins the task that is asked for", info["task_id"] == tasks[0].id),
            ("the same task opens alike", first == again),
            ("its messages open a chat", all({"role", "content"} <= set(message) for message in info["messages"])),
            ("an observation is text", isinstance(observation, str)),
            ("a reward is a finite number", math.isfinite(reward)),
            ("it says whether it is over", isinstance(terminated, bool) and isinstance(truncated, bool)),
            ("a trace is kept", len(env.trace) == 1 and env.trace[0].text == TURNS[1]),
            ("an end is named", (env.trace[0].ending is not None) == (terminated or truncated)),
            ("messages answer while it goes on", terminated or truncated or len(after["messages"]) > 0),
        ]
    finally:
        env.close()


def reward(spec: str, options: dict[str, Any]) -> Promises:
    """It lies in [0, 1], and the same episode earns the same."""
    scores = []
    named = {"reward": spec, **options} if options else spec
    for said in (TURNS[1], "It is \\boxed{41}.", TURNS[1]):
        env = ToolEnv([TASK], reward=named)
        env.reset(options={"task": TASK})
        scores.append(env.step(said)[1])
        env.close()
    return [
        ("it lies in [0, 1]", all(0 <= score <= 1 for score in scores)),
        ("the same episode earns the same", scores[0] == scores[2]),
    ]


def answer(spec: str, options: dict[str, Any]) -> Promises:
    """Candidates are (text, position) in the order of the text; an empty text has none."""
    check_style(spec)
    found = list(extractor(spec)(TURNS[1])) if spec != "auto" else []
    return [
        ("candidates are (text, position)", all(isinstance(a, str) and 0 <= at < len(TURNS[1]) for a, at in found)),
        ("they come in order", [at for _, at in found] == sorted(at for _, at in found)),
        ("an empty text has none", spec == "auto" or not list(extractor(spec)(""))),
    ]


def syntax_(spec: str, options: dict[str, Any]) -> Promises:
    """The same calls whether a turn arrives whole or in pieces, and its own example is read back."""
    made = syntax(spec)
    same = True
    for text in ("plain text", *TURNS, f"{made.how}\n", "<a [b ```c\n" * 3):
        whole, slow = Parser(spec), Parser(spec)
        ends = [slow.feed(letter) for letter in text]
        same &= whole.feed(text) == ends[-1] and whole.finish() == slow.finish()
    return [
        ("it says how to call", bool(made.how.strip())),
        ("its stops are texts", all(isinstance(stop, str) and stop for stop in made.stops)),
        ("letter by letter it says the same", same),
    ]


def layout(spec: str, options: dict[str, Any]) -> Promises:
    """It says what it reads, and claims no rows that are not its own."""
    made = registry.make("layout", spec, options)
    return [
        ("it says what it reads", isinstance(made.says, str) and bool(made.says)),
        ("it does not claim a row of nothing", not made.matches({})),
        ("it does not claim a row of others", not made.matches({"qqq_1": 1, "qqq_2": "x"})),
        ("it reads fields", callable(made.fields)),
    ]


def data(spec: str, options: dict[str, Any]) -> Promises:
    """options: of the component; `what` among them is what stands after its name."""
    options = dict(options)
    what = str(options.pop("what", ""))

    def made(seed: int, side: Side) -> list[Task]:
        maker: Maker = registry.make("data", spec, options, what=what, seed=seed)
        return maker.tasks(side, 6)

    def prompts(tasks: Sequence[Task]) -> set[str]:
        return {task.prompt for task in tasks}

    train, test, other = made(3, "train"), made(3, "test"), made(4, "train")
    return [
        ("it makes as many as are asked for", len(train) == len(test) == 6),
        ("no two are the same", len(prompts(train)) == 6 and len({task.id for task in train}) == 6),
        ("the same seed makes the same", made(3, "train") == train),
        ("what is held out is never learnt, whatever the seeds", not prompts(test) & (prompts(train) | prompts(other))),
        ("prompts and answers are texts", all(isinstance(t.prompt, str) and isinstance(t.answer, str) for t in train)),
    ]


def engine(spec: str, options: dict[str, Any]) -> Promises:
    """Tokens within the limit with log-probabilities and versions, and one seed gives one sample."""
    return asyncio.run(_engine(spec, options))


async def _engine(spec: str, options: dict[str, Any]) -> Promises:
    made, tokenizer = await open_engine(spec, slots=4, max_len=64, options=options)
    try:
        prompt = encode(tokenizer, "What is 6 times 7?")[:32]
        wanted = Sampling(5, seed=3, key="one")
        one, two = await asyncio.gather(made.generate(prompt, wanted), made.generate(prompt, wanted))
        await made.release("one")
        n = len(one.token_ids)
        return [
            ("it samples at least one token", n >= 1),
            ("it keeps to max_tokens", n <= 5),
            ("every token has a log-probability and a version", len(one.logprobs) == len(one.versions) == n),
            ("log-probabilities are at most 0", all(not x > 1e-6 for x in one.logprobs)),
            ("tokens carry the version of the weights", set(one.versions) <= {made.version}),
            ("one seed, one sample", one.token_ids == two.token_ids),
            ("it says why it stopped", one.finish in ("stop", "length", "abort")),
        ]
    finally:
        await made.close()
        await made.close()  # idempotent


def strategy(spec: str, options: dict[str, Any]) -> Promises:
    """It plays the asked task to a `Trajectory`, in which the policy's tokens alone are marked, or to a `Tree`."""
    env = ToolEnv([TASK])
    said = itertools.chain(TURNS, itertools.repeat(TURNS[1]))
    scripted = ScriptedEngine(lambda text: next(said))
    play = registry.bind("rollout", spec, options, leaves=4)
    given = {"sampling": Sampling(200), "max_tokens": 2000, "task_id": TASK.id, "seed": 5, "retries": 0}
    try:
        got: Any = asyncio.run(play(env, scripted, Chat(scripted.tokenizer), dispatch=None, **given))
    finally:
        env.close()
    if isinstance(got, Tree):
        return _tree(got)
    if not isinstance(got, Trajectory):
        return [("it returns a Trajectory or a Tree", False)]
    return [
        ("it returns a Trajectory or a Tree", True),
        ("it plays the task that is asked for", got.task_id == TASK.id),
        ("the policy's tokens are marked, no others", 0 < got.n_action_tokens < len(got)),
        ("its reward is finite", math.isfinite(got.reward)),
    ]


def _tree(got: Tree) -> Promises:
    branches = [leaf.branch for leaf in got.leaves]
    places = [branch for branch in branches if branch is not None]
    shared = [
        got.leaves[i].token_ids[:at].tolist() == got.leaves[branch.path[-2]].token_ids[:at].tolist()
        for i, branch in enumerate(places)
        for at in branch.forks[-1:]
    ]
    return [
        ("it returns a Trajectory or a Tree", True),
        ("every leaf has its place, in order", [branch.leaf for branch in places] == list(range(len(got.leaves)))),
        ("all know how many there are", {branch.leaves for branch in places} == {len(got.leaves)}),
        ("it grows no more leaves than are asked for", 1 <= len(got.leaves) <= 4),
        ("leaves have events of their own", [leaf.dispatch.event for leaf in got.leaves] == list(range(len(places)))),
        ("it plays the task that is asked for", {leaf.task_id for leaf in got.leaves} == {TASK.id}),
        ("a shared beginning is the very same", all(shared)),
        ("the policy's tokens are marked, no others", all(0 < leaf.n_action_tokens < len(leaf) for leaf in got.leaves)),
        ("rewards are finite", all(math.isfinite(leaf.reward) for leaf in got.leaves)),
    ]
