"""A conversation with an agent that has the interpreter, as a stream of what it says and does.

The engine is asked for a few tokens at a time, so that text appears while it is sampled; each piece continues the
ledger, and an engine that keeps its KV cache under the key pays only for the new tokens. A turn that completed a call
is cut behind it, the call runs in the conversation's own session, and its output is what the policy reads next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from solostream.agent.chat_template import Chat
from solostream.agent.engine import Engine, EngineError, Sampling
from solostream.agent.engines.scripted import ScriptedEngine
from solostream.agent.engines.stops import end_of_turn
from solostream.agent.tokenization import decode
from solostream.envs.text.observation import observe
from solostream.envs.text.parse import Parser, Think, begun, names_tools, parse, stops
from solostream.envs.text.syntax import syntaxes
from solostream.envs.tools import json_schema, make_tool
from solostream.envs.types import ToolCall
from solostream.sandbox.types import Execution, Session

PIECE = 12  # tokens asked for at a time
MOST_CALLS = 16  # after one message, so that no policy runs code forever


@dataclass(frozen=True, slots=True)
class Said:
    """More text of the policy."""

    text: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A call that was executed; `shown` is what the policy sees of it."""

    call: ToolCall
    execution: Execution
    shown: str


class Talk:
    """One conversation. `sampling.max_tokens` bounds one turn; `room` the whole conversation, in tokens."""

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        session: Session,
        *,
        sampling: Sampling,
        room: int,
        instructions: Sequence[Mapping[str, Any]] = (),
        syntax: str | Sequence[str] = "fence",
        think: Think = "run",
        timeout: float | None = None,
        show: Callable[[Execution], str] = observe,
    ) -> None:
        """instructions: the messages before the first of the user. timeout: of a call, show: what is seen of it.

        Raises UserError for an unknown syntax.
        """
        self._syntax, self._think = syntaxes(chat.syntax if syntax == "auto" else syntax), think
        self._inside = False  # the last turn ended in a thought that a call interrupted
        self._engine, self._chat, self._session = engine, chat, session
        self._sampling = replace(sampling, stop=stops(self._syntax), stop_token_ids=chat.stop_token_ids)
        self._tools = (json_schema(make_tool("python")),) if names_tools(self._syntax) else ()
        self._room, self._instructions, self._timeout, self._show = room, instructions, timeout, show
        self._ids: list[int] = []
        self._turns = 0

    async def say(self, text: str) -> AsyncIterator[Said | Ran]:
        """What the agent says and does in answer to `text`. Raises EngineError, SandboxError."""
        message = {"role": "user", "content": text}
        self._inside = False
        if self._ids:
            self._ids += self._chat.append([message], self._ids[-1:])
        else:
            self._ids += self._chat.open([*self._instructions, message], self._tools)
        for _ in range(MOST_CALLS):
            turn: list[int] = []
            async for piece in self._turn(turn):
                yield Said(piece)
            said = decode(self._chat.tokenizer, turn)
            self._ids += turn
            parsed = parse(said, self._syntax, think=begun(self._think, self._inside or self._chat.opens_thought))
            self._inside, found = parsed.inside, parsed.calls
            calls = [call for call in found if call.status == "ok" and call.name == "python"]
            if not calls:
                return
            execution = await self._session.run(calls[0].code, timeout=self._timeout)
            shown = self._show(execution)
            yield Ran(calls[0], execution, shown)
            output = {"role": "tool", "name": "python", "content": shown}
            self._ids += self._chat.append([output], turn[-1:])

    async def _turn(self, turn: list[int]) -> AsyncIterator[str]:
        """Sample one turn into `turn`, yielding its text as it grows. Raises EngineError when there is no room."""
        self._turns += 1
        key = f"converse-{id(self)}-{self._turns}"
        parser, shown = (
            Parser(self._syntax, think=begun(self._think, self._inside or self._chat.opens_thought)),
            0,
        )  # shown: characters yielded, and fed to the parser
        # A script or a plain endpoint says a turn at once: asked for a piece, it would start over with the next.
        piece = self._sampling.max_tokens if isinstance(self._engine, ScriptedEngine) else PIECE
        try:
            while len(turn) < self._sampling.max_tokens:
                room = self._room - len(self._ids) - len(turn)
                if room < 1:
                    raise EngineError(f"the conversation is at its {self._room} tokens: start anew with /reset")
                asked = min(piece, room, self._sampling.max_tokens - len(turn))
                seed = self._sampling.seed
                seed = None if seed is None else (seed * 1_000_003 + len(self._ids) + len(turn)) & 0x7FFFFFFF
                sampling = replace(self._sampling, max_tokens=asked, seed=seed, key=key)
                got = await self._engine.generate([*self._ids, *turn], sampling)
                turn += got.token_ids
                closer = end_of_turn(self._chat.tokenizer, turn, got, self._sampling.stop, self._chat.stop_token_ids)
                text = decode(self._chat.tokenizer, turn[:-1] if closer == "token" else turn)
                whole = text.rstrip("\ufffd")  # a character whose last bytes are still to come
                end = parser.feed(whole[shown:])
                if end is not None:
                    whole = whole[:end]
                    _cut(turn, end, lambda ids: len(decode(self._chat.tokenizer, ids)))
                yield whole[shown:]
                shown = max(shown, len(whole))
                if closer or end is not None or not got.token_ids:
                    return
        finally:
            await self._engine.release(key)


def _cut(turn: list[int], end: int, length: Callable[[list[int]], int]) -> None:
    """Drop the tokens that a piece sampled behind the end of a call."""
    while len(turn) > 1 and length(turn[:-1]) >= end:
        turn.pop()
