"""Demonstrations share a session, and see what a session of their own shows."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from envs.families import KINDS, generate
from sandbox.fork import ForkSandbox
from sandbox.types import Execution, Session
from training import practice
from training.demonstrations import demonstration
from training.practice import Practice


def shown(execution: Execution) -> tuple[str, str, str | None, object, str]:
    return execution.stdout, execution.stderr, execution.result, execution.error, execution.status


def in_both(play: Callable[[Practice, ForkSandbox], Awaitable[None]]) -> None:
    async def run() -> None:
        sandbox = ForkSandbox()
        try:
            await play(Practice(sandbox), sandbox)
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

    async def play(shared: Practice, sandbox: ForkSandbox) -> None:
        seen = [await say(await shared.open(), codes) for codes in episodes]
        alone = [await say(await sandbox.open(), codes) for codes in episodes]
        assert seen == alone
        assert any(status == "error" for calls in seen for *_, status in calls)

    in_both(play)


def test_an_episode_keeps_its_variables_after_an_error() -> None:
    async def play(shared: Practice, sandbox: ForkSandbox) -> None:
        codes = ["x = 20", "x +", "x + 1"]
        seen = await say(await shared.open(), codes)
        assert seen == await say(await sandbox.open(), codes)
        assert seen[-1][2] == "21"

    in_both(play)


def test_a_session_that_died_is_not_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(practice, "EPISODES", 1000)

    async def play(shared: Practice, sandbox: ForkSandbox) -> None:
        first = await shared.open()
        assert (await first.run("import os; os.kill(os.getpid(), 9)")).status == "killed"
        await first.close()
        assert await say(await shared.open(), ["6 * 7"]) == await say(await sandbox.open(), ["6 * 7"])

    in_both(play)
