"""Demonstrations share a session, and see what a session of their own shows."""

import ast
import asyncio
import builtins
import contextlib
import importlib
import random
from collections.abc import Awaitable, Callable

import pytest

from solostream.envs.data.arithmetic import KINDS, generate
from solostream.sandbox.fork import ForkSandbox
from solostream.sandbox.types import Execution, Session
from solostream.training.sft import shared_session
from solostream.training.sft.demonstrations import demonstration
from solostream.training.sft.shared_session import SharedSession


def shown(execution: Execution) -> tuple[str, str, str | None, object, str]:
    return execution.stdout, execution.stderr, execution.result, execution.error, execution.status


def in_both(play: Callable[[SharedSession, ForkSandbox], Awaitable[None]]) -> None:
    async def run() -> None:
        sandbox = ForkSandbox()
        try:
            await play(SharedSession(sandbox), sandbox)
        finally:
            await sandbox.close()

    asyncio.run(run())


async def say(session: Session, codes: list[str]) -> list[tuple]:
    try:
        return [shown(await session.run(code)) for code in codes]
    finally:
        await session.close()


def test_what_demonstrations_see_is_what_a_session_of_their_own_shows() -> None:
    """Every kind, right and with its bug, as the last of more calls than one digit counts."""
    rng = random.Random(0)
    texts = [demonstration(t, s, rng) for t in generate(3 * len(KINDS), seed=0) for s in ("early", "bug")]
    episodes = [[turn.split("```python\n")[1].split("\n```")[0] for turn in turns if "```" in turn] for turns in texts]

    async def play(shared: SharedSession, sandbox: ForkSandbox) -> None:
        seen = [await say(await shared.open(), codes) for codes in episodes]
        alone = [await say(await sandbox.open(), codes) for codes in episodes]
        assert seen == alone
        assert any(status == "error" for calls in seen for *_, status in calls)

    in_both(play)


def test_no_demonstration_reads_a_name_that_another_could_have_left() -> None:
    """What a cell reads and does not bind are builtins, and no cell binds one of these."""
    sympy = set(importlib.import_module("sympy").__all__)
    free, bound = set[str](), set[str]()
    for task in generate(3 * len(KINDS), seed=0):
        for code in (task.meta["code"], task.meta["code"][:-1]):
            with contextlib.suppress(SyntaxError):
                names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name | ast.alias)]
                own = {n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                own |= {n.name for n in names if isinstance(n, ast.alias) and n.name != "*"}
                own |= sympy if "import *" in code else set()
                free |= {n.id for n in names if isinstance(n, ast.Name)} - own
                bound |= own
    assert free <= set(dir(builtins))
    assert not free & bound


def test_an_episode_keeps_its_variables_after_an_error() -> None:
    async def play(shared: SharedSession, sandbox: ForkSandbox) -> None:
        codes = ["x = 20", "x +", "x + 1"]
        seen = await say(await shared.open(), codes)
        assert seen == await say(await sandbox.open(), codes)
        assert seen[-1][2] == "21"

    in_both(play)


def test_a_session_that_died_is_not_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_session, "EPISODES", 1000)

    async def play(shared: SharedSession, sandbox: ForkSandbox) -> None:
        first = await shared.open()
        assert (await first.run("import os; os.kill(os.getpid(), 9)")).status == "killed"
        await first.close()
        assert await say(await shared.open(), ["6 * 7"]) == await say(await sandbox.open(), ["6 * 7"])

    in_both(play)
