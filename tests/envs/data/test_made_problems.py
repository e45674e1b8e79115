"""Problems that are made here: right by what they say themselves, and on one side whatever the seed."""

from __future__ import annotations

import re

import gymnasium
import pytest

from solostream.envs.data import load
from solostream.envs.data.generators.python_docs import _facts
from solostream.envs.data.python_docs import pages
from solostream.envs.tools.search import Search
from solostream.errors import UserError

NAMES = ["shell", "functions", "python-docs"]


@pytest.mark.parametrize("name", NAMES)
def test_sides_hold_whatever_the_seed(name):
    train = {task.id: task for seed in (0, 5) for task in load(f"{name}:all", split="train", limit=60, seed=seed)}
    test = {task.id: task for seed in (0, 5) for task in load(f"{name}:all", split="test", limit=40, seed=seed)}
    assert not train.keys() & test.keys()
    assert not {t.prompt for t in train.values()} & {t.prompt for t in test.values()}
    kinds = {task.source for task in train.values()}
    assert len(kinds) == len({task.id.split("/")[0] for task in train.values()}) >= 2
    assert load(f"{name}:all", split="test", limit=40) == load(f"{name}:all", split="test", limit=40)


def test_no_function_is_on_both_sides():
    def bodies(side):
        return {task.answer.partition("\n")[2] for task in load("functions:all", split=side, limit=300)}

    assert len(bodies("train")) == 300
    assert not bodies("train") & bodies("test")


def test_hidden_results_cannot_be_guessed():
    for task in load("functions:all", split="train", limit=50):
        assert len({repr(result) for _, result in task.meta["cases"]}) >= 4
        assert len(task.meta["cases"]) == 8
        shown = re.findall(r"\((\[.*\])\) ==", task.prompt)
        assert len(shown) == 2
        assert not {repr(given[0]) for given, _ in task.meta["cases"]} & set(shown)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there_is_told(name):
    with pytest.raises(UserError, match=f"{name} has no kind 'nothing'"):
        load(f"{name}:nothing")


def test_more_than_there_are():
    with pytest.raises(UserError, match=r"python-docs:default has \d+ test problems, and 500 are wanted"):
        load("python-docs:default", split="test", limit=500)
    assert len(load("python-docs:default,far", split="train", limit=90)) == 90  # one kind goes on for the other


def test_every_solution_of_the_shell_is_right():
    """Two of each kind, played in the real sandbox; without the change a task of change is not solved."""
    env = gymnasium.make("solostream/Shell-v0", tasks={"load": "shell:all", "limit": 12})
    seen = set()
    for task in env.unwrapped.tasks:
        seen.add(task.source)
        solution = task.meta["solution"].replace("\\", "\\\\").replace('"', '\\"')
        for solve in (True, False):
            env.reset(options={"task_id": task.id})
            if solve:
                call = f'<tool_call>{{"name": "bash", "arguments": {{"command": "{solution}"}}}}</tool_call>'
                said = env.step(call)[0]
                assert task.answer in (said.splitlines()[-1].split()[-1], "done"), task
            reward = env.step(f"\\boxed{{{task.answer}}}")[1]
            assert reward == (1.0 if solve or "wanted" not in task.meta else 0.0), task
    env.close()
    assert len(seen) == 6


async def test_the_hops_of_a_question_are_in_the_corpus():
    """The page that the question describes is found by it, and names the page on which the answer stands."""
    tool = Search("python-docs", k=8)
    for kind, facts in (("default", _facts("default")), ("method", _facts("method")[::200])):
        for question, answer in facts:
            described = re.search("“(.+?)”", question).group(1)
            first = await tool({"query": described}, None)
            assert described.split()[-1] in " ".join(first.split()), (kind, question)
            base = next(page for page in pages() if " ".join(page.doc.split()).startswith(described))
            named = base.bases[0].rpartition(".")[2]
            text = next(p.text for p in pages() if p.name.endswith(f".{named}") and p.signature.startswith("class"))
            assert answer in text
    assert len(_facts("far")) > 100
