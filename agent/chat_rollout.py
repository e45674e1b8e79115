"""One episode of a chat endpoint: an environment, messages, and the record of what was said.

The tools of the environment are sent along, and native calls come back beside the text. They are written into the turn
in Hermes' form, the one in which environments read JSON calls: an environment steps on text, whoever plays. Its answers
go back as one `tool` message a call. An endpoint without native calls (an environment with a text syntax, or a server
that does not parse calls) is cut behind its first complete call, as an engine is.

The record has lengths, not tokens: an endpoint tells how many it read and wrote. What lies between two turns is the
growth of the prompt from one request to the next (0 where reasoning was dropped from it); where a call begins within a
turn is interpolated by characters. An endpoint that counts nothing is measured in bytes, and the record says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from solostream.agent.chat_reply import ContextOverflow, NativeCall, Parameters, Reply
from solostream.agent.context import turns_kept
from solostream.agent.rollout import ending_of
from solostream.agent.trajectory import Dispatch, Ending, Role, TokenRecord, Trajectory, Unit, Usage
from solostream.envs.text.parse import parse
from solostream.envs.text_env import TextEnv
from solostream.envs.types import Step
from solostream.errors import SandboxError
from solostream.retry import retry

if TYPE_CHECKING:
    from solostream.agent.engines.chat_endpoint import ChatEndpoint


@dataclass(slots=True)
class _Said:
    """One turn of the endpoint; `observed` is what the environment answered."""

    reply: Reply
    text: str
    step: Step
    observed: str = ""


@dataclass(slots=True)
class _Episode:
    prompt: str = ""
    turns: list[_Said] = field(default_factory=list)


async def chat_rollout(
    env: TextEnv,
    endpoint: ChatEndpoint,
    *,
    parameters: Parameters,
    max_tokens: int | None = None,
    task_id: str | None = None,
    seed: int = 0,
    retries: int = 1,
) -> Trajectory:
    """Play one episode.

    parameters: of every request. max_tokens: of the whole conversation, where the endpoint counts; None: as many as its
    context has. retries: whole episodes started again after a `SandboxError`. A conversation that does not fit the
    context ends as `token_limit`. Raises EngineError, UserError as `ChatEndpoint.reply` does.
    """
    options = None if task_id is None else {"task_id": task_id}
    episode, name = _Episode(), task_id or ""

    async def attempt() -> tuple[Step | None, Ending]:
        nonlocal episode, name
        episode = _Episode()
        _, info = await env.areset(seed=seed, options=options)
        name, opening = info["task_id"], info["messages"]
        episode.prompt = "\n\n".join(message["content"] for message in opening)
        ending = await _play(env, endpoint, episode, _opened(opening, bool(env.tools)), parameters, max_tokens)
        return (env.trace[-1] if env.trace else None), ending

    step: Step | None = None
    ending: Ending = "infra"
    with suppress(SandboxError):
        step, ending = await retry(attempt, SandboxError, retries)
    ledger, unit = _ledger(episode)
    usages = [turn.reply.usage for turn in episode.turns if turn.reply.usage]
    return ledger.close(
        name,
        0.0 if ending == "infra" else ledger.earned,
        ending,
        dispatch=Dispatch(),
        seed=seed,
        source=getattr(env.task, "source", ""),
        kind=getattr(env.task, "kind", ""),
        answer=step.answer if step else None,
        unit=unit,
        usage=sum(usages, Usage()) if usages else None,
    )


async def _play(
    env: TextEnv,
    endpoint: ChatEndpoint,
    episode: _Episode,
    opening: Sequence[Mapping[str, Any]],
    parameters: Parameters,
    max_tokens: int | None,
) -> Ending:
    """Turns until the environment, a budget or the context ends the episode."""
    used = 0
    messages = list(opening)
    seen: list[list[Mapping[str, Any]]] = []  # turns that the endpoint is shown, each with the answers to it
    while True:
        if max_tokens is not None:
            room = max_tokens - used
            if room < 1:
                return "token_limit"
            asked = replace(parameters, max_tokens=min(room, parameters.max_tokens or room))
        else:
            asked = parameters
        try:
            reply = await endpoint.reply(messages, env.tools, asked)
        except ContextOverflow:
            return "token_limit"
        text = _turn_text(env, reply)
        *_, info = await env.astep(text)
        step = env.trace[-1]
        observed = info["messages"]
        episode.turns.append(_Said(reply, text, step, "\n".join(m["content"] for m in observed)))
        ending = ending_of(step, cut=reply.finish == "length", room=True)  # the endpoint counts: see above
        if ending is not None:
            return ending
        said = reply if reply.calls else replace(reply, text=text)
        if step.keep is not None:
            seen = seen[max(len(seen) - step.keep, 0) :]
        seen.append([said.message(), *_answers(reply.calls, len(step.calls), observed)])
        messages = [*opening, *(message for turn in seen for message in turn)]
        used = reply.usage.prompt_tokens + reply.usage.completion_tokens if reply.usage else 0


def _opened(opening: Sequence[Mapping[str, Any]], native: bool) -> list[Mapping[str, Any]]:
    """The messages before the endpoint first speaks. Calls in examples go as native ones where its own do."""
    messages: list[Mapping[str, Any]] = []
    waiting: list[str] = []  # ids of calls whose outputs come next
    for number, message in enumerate(opening):
        if message["role"] == "assistant" and native and (calls := parse(message["content"], ("hermes",)).calls):
            waiting = [f"call_{number}_{index}" for index in range(len(calls))]
            said = message["content"][: calls[0].span[0]].rstrip("\n")
            functions = (
                {"name": c.name, "arguments": json.dumps(dict(c.arguments), ensure_ascii=False)} for c in calls
            )
            native_calls = [
                {"id": i, "type": "function", "function": f} for i, f in zip(waiting, functions, strict=True)
            ]
            messages.append({"role": "assistant", "content": said or None, "tool_calls": native_calls})
        elif message["role"] == "tool" and waiting:
            messages.append({"role": "tool", "tool_call_id": waiting.pop(0), "content": message["content"]})
        elif message["role"] == "tool":  # endpoints take a tool's message only behind a call in their own form
            messages.append({"role": "user", "content": message["content"]})
        else:
            messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _turn_text(env: TextEnv, reply: Reply) -> str:
    """The turn as the environment reads it."""
    if not reply.calls:
        return reply.text[: env.complete(reply.text)]
    return "\n".join([*([reply.text] if reply.text else []), *map(_as_hermes, reply.calls)])


def _as_hermes(call: NativeCall) -> str:
    """Arguments that are no JSON object stay the text that they are: the environment finds fault with them."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    record = json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)
    harmless = record.replace("</tool_call>", "<\\/tool_call>")  # the same JSON, without the end of the call in it
    return f"<tool_call>\n{harmless}\n</tool_call>"


def _answers(
    calls: Sequence[NativeCall], parsed: int, observed: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The environment's messages as the endpoint takes them: every native call is answered, by its id.

    parsed: calls that the environment found in the turn; those that stand in its text come before the native ones.
    """
    written = max(parsed - len(calls), 0)
    texts, answers = list(observed[:written]), [m["content"] for m in observed[written:] if m["role"] == "tool"]
    texts += [message for message in observed[written:] if message["role"] != "tool"]
    answers += ["Error: this call was not executed"] * (len(calls) - len(answers))
    return [
        *({"role": "tool", "tool_call_id": c.id, "content": a} for c, a in zip(calls, answers, strict=False)),
        *({"role": "user", "content": message["content"]} for message in texts),
    ]


def _ledger(episode: _Episode) -> tuple[TokenRecord, Unit]:
    """Lengths in the endpoint's tokens if it counted all of the episode, else in bytes. No id is invented."""
    counts = [turn.reply.usage for turn in episode.turns]
    counted = None not in counts
    sizes = [(u.prompt_tokens, u.completion_tokens) for u in counts if u] if counted else _bytes(episode)
    ledger = TokenRecord()
    _observe(ledger, "user", sizes[0][0] if sizes else 0, episode.prompt)
    for index, turn in enumerate(episode.turns):
        prompt, written = sizes[index]
        starts = [_position(call.span[0], turn, written) for call in turn.step.calls]
        ledger.add_action(
            [-1] * written,
            [float("nan")] * written,
            [-1] * written,
            turn.text,
            turn.step.calls,
            turn.step.executions,
            starts,
            turn.step.void,
            turn.step.reward,
            turn.reply.reasoning,
        )
        before = prompt + written
        kept = turns_kept(ledger.seen, turn.step.keep, 0, 0, None) if turn.observed else None
        if kept is not None:
            ledger.fold(kept)
            before = len(ledger.context)
        if turn.observed:
            grown = sizes[index + 1][0] - before if index + 1 < len(sizes) else 0
            _observe(ledger, "tool", max(grown, 0), turn.observed)
    return ledger, "tokens" if counted else "bytes"


def _bytes(episode: _Episode) -> list[tuple[int, int]]:
    """(prompt, written) of every request, in bytes of UTF-8; the prompt of the next holds all that was said."""
    opening = _size(episode.prompt)
    sizes: list[tuple[int, int]] = []
    seen: list[int] = []  # of the turns that the endpoint is shown, each with the answer to it
    for turn in episode.turns:
        written = _size(turn.reply.reasoning) + _size(turn.text)
        sizes.append((opening + sum(seen), written))
        if turn.step.keep is not None:
            seen = seen[max(len(seen) - turn.step.keep, 0) :]
        seen.append(written + _size(turn.observed))
    return sizes


def _observe(ledger: TokenRecord, role: Role, count: int, text: str) -> None:
    ledger.add_observation(role, [-1] * count, text)


def _position(start: int, turn: _Said, written: int) -> int:
    """Where in the turn its character `start` is, in units of the ledger: reasoning comes first."""
    thought, text = _size(turn.reply.reasoning), _size(turn.text)
    before = thought + _size(turn.text[:start])
    usage = turn.reply.usage
    if usage and usage.reasoning_tokens and not thought:  # counted, but not shown
        hidden = usage.reasoning_tokens
        return min(hidden + round((written - hidden) * before / max(text, 1)), max(written - 1, 0))
    return min(round(written * before / max(thought + text, 1)), max(written - 1, 0))


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))
