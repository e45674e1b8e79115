"""A conversation with the real interpreter: streamed in pieces, state kept, nothing lost at the seams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from solostream.agent.chat_template import CHATML, Chat
from solostream.agent.conversation import Ran, Said, Talk
from solostream.agent.engine import EngineError, Generation, Sampling
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.cli.chat import harmless
from solostream.sandbox import open_sandbox

TOKENS = byte_tokenizer()
TURNS = [
    "Let me see 🙂.\n```python\nx = 6 * 7\nprint(x)\n```\n",
    "It is 42 – naïvely.",
    "```python\nprint(x + 1)\n```\n",
    "43",
]


class Pieces:
    """Speaks `TURNS` a few tokens at a time, never stopping at a stop string: the hardest engine to follow."""

    version = 0

    def __init__(self, turns: list[str]) -> None:
        self.asked: list[list[int]] = []
        self._rest = [[*TOKENS.encode(t + "!!!" * t.endswith("```\n")), TOKENS.eos_token_id] for t in turns]
        self._key: str | None = None
        self._now: list[int] = []

    async def generate(self, prompt_ids, sampling: Sampling) -> Generation:
        self.asked.append(list(prompt_ids))
        if sampling.key != self._key:
            self._key, self._now = sampling.key, self._rest.pop(0)
        ids, self._now = self._now[: sampling.max_tokens], self._now[sampling.max_tokens :]
        return Generation(ids, [0.0] * len(ids), [0] * len(ids), "length" if self._now else "stop")

    async def release(self, key: str) -> None: ...
    async def load_weights(self, weights, version: int) -> None: ...
    async def close(self) -> None: ...


async def test_text_calls_and_state_over_two_messages() -> None:
    box = open_sandbox("fork")
    engine = Pieces(TURNS)
    try:
        converse = Talk(engine, Chat(TOKENS, CHATML), await box.open(), sampling=Sampling(500), room=5000)
        events = [e async for e in converse.say("What is 6 * 7?")]
        assert "".join(e.text for e in events if isinstance(e, Said)) == TURNS[0] + TURNS[1]  # nothing behind the call
        assert len([e for e in events if isinstance(e, Said)]) > 5
        assert [e.execution.stdout for e in events if isinstance(e, Ran)] == ["42\n"]
        more = [e async for e in converse.say("And one more?")]
        assert [e.execution.stdout for e in more if isinstance(e, Ran)] == ["43\n"]  # x was kept
        seen = TOKENS.decode(engine.asked[-1])
        assert [seen.index(part) for part in ("6 * 7?", "print(x)", "naïvely", "one more?", "print(x + 1)")] == sorted(
            seen.index(part) for part in ("6 * 7?", "print(x)", "naïvely", "one more?", "print(x + 1)")
        )
        assert "!!!" not in seen
        assert all(
            later[: len(earlier)] == earlier for earlier, later in zip(engine.asked[:2], engine.asked[1:3], strict=True)
        )
    finally:
        await box.close()


async def test_a_full_conversation_says_so() -> None:
    box = open_sandbox("fork")
    try:
        converse = Talk(Pieces(TURNS), Chat(TOKENS, CHATML), await box.open(), sampling=Sampling(500), room=40)
        with pytest.raises(EngineError, match="/reset"):
            _ = [e async for e in converse.say("What is 6 * 7?")]
    finally:
        await box.close()


async def test_the_policy_sees_what_show_makes_of_a_call_and_waits_no_longer_than_timeout() -> None:
    box = open_sandbox("fork")
    engine = Pieces(["```python\nimport time; time.sleep(60)\n```\n", "so"])
    try:
        converse = Talk(
            engine, Chat(TOKENS, CHATML), await box.open(), sampling=Sampling(500), room=5000,
            instructions=[{"role": "system", "content": "Be brief."}], timeout=0.3,
            show=lambda execution: f"<{execution.status}>",
        )  # fmt: skip
        events = [e async for e in converse.say("Wait.")]
        assert [e.shown for e in events if isinstance(e, Ran)] == ["<timeout>"]
        seen = TOKENS.decode(engine.asked[-1])
        assert "Be brief." in seen
        assert "<timeout>" in seen
    finally:
        await box.close()


def test_no_escape_sequence_reaches_the_terminal() -> None:
    assert harmless("a\x1b]0;title\x07\x1b[31mb\tc\nd\x9b") == "a␛]0;title␛␛[31mb\tc\nd␛"


def test_the_command(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "solostream", "chat", "scripted:evaluation_policies:calculator"],
        input="What is 6 * 7?\n/quit\n", capture_output=True, text=True, cwd=tmp_path, timeout=100,
        env={"PYTHONPATH": f"{root}:{root / 'tests'}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "│ 42" in done.stdout
    assert "So it is \\boxed{42}." in done.stdout
