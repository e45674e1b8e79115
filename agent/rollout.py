"""One episode: an environment, an engine and the ledger between them.

The engine samples a turn up to a stop string; whether that really completed a call the environment's parser says, and
if not the turn goes on. A `SandboxError` starts the episode anew a bounded number of times and then ends it as `infra`:
no reward, not data. An `EngineError` is raised: who runs many episodes restarts the engine and dispatches them again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from solostream.agent.chat_template import Chat
from solostream.agent.context import History, turns_kept
from solostream.agent.engine import Engine, EngineError, Sampling
from solostream.agent.engines.stops import end_of_turn
from solostream.agent.tokenization import decode
from solostream.agent.trajectory import Dispatch, Ending, Role, TokenRecord, Trajectory
from solostream.envs.rewards.episode import RewardError
from solostream.envs.text_env import TextEnv
from solostream.envs.types import Grading, Step, ToolCall
from solostream.errors import SandboxError
from solostream.retry import retry

_episodes = itertools.count()
ABORTS = 4  # requests that an engine may give up in a row before the episode is infrastructure's failure


@dataclass(slots=True)
class Sampled:
    """One turn of the policy so far; the environment has not seen it yet."""

    ids: list[int]
    logprobs: list[float]
    versions: list[int]
    text: str = ""
    cut: bool = False  # by a token budget, not by the policy


async def rollout(
    env: TextEnv,
    engine: Engine,
    chat: Chat,
    *,
    sampling: Sampling,
    max_tokens: int,
    task_id: str | None = None,
    dispatch: Dispatch | None = None,
    seed: int = 0,
    retries: int = 1,
    history: History | None = None,
) -> Trajectory:
    """Play one episode.

    sampling: of one turn; its stop strings, stop ids, seed and key are set here. max_tokens: of the whole ledger,
    prompt included; where history is replaced, of each segment. task_id: None lets the environment draw one from
    `seed`. retries: whole episodes started again after a `SandboxError`, beyond the retries of the environment.
    history: what leaves the policy's sight on the way; None: only what the environment folds. Raises EngineError, and
    UserError for an unknown task or a prompt that does not fit the engine's context.
    """
    key = f"{next(_episodes)}"
    fit_to(chat, env)
    sampling = replace(sampling, stop=env.stops, stop_token_ids=chat.stop_token_ids, key=key)
    options = None if task_id is None else {"task_id": task_id}
    ledger, name = TokenRecord(), task_id or ""

    async def attempt() -> tuple[Step | None, Ending, Grading | None]:
        nonlocal ledger, name
        ledger = TokenRecord()
        try:
            _, info = await env.areset(seed=seed, options=options)
            name, opening = info["task_id"], info["messages"]
            ledger.add_observation("user", chat.open(opening, env.tools), "\n\n".join(m["content"] for m in opening))
            step, ending = await _play(env, engine, chat, ledger, sampling, max_tokens, seed, history)
            return step, ending, step.grading if step else None
        except RewardError as error:  # the episode was played; only nobody can say what it is worth
            return None, "infra", Grading(failure=str(error))
        finally:
            await engine.release(key)

    try:
        step, ending, grading = await retry(attempt, SandboxError, retries)
    except SandboxError:
        step, ending, grading = None, "infra", None
    return ledger.close(
        name,
        0.0 if ending == "infra" else ledger.earned,
        ending,
        dispatch=dispatch or Dispatch(),
        seed=seed,
        source=getattr(env.task, "source", ""),
        kind=getattr(env.task, "kind", ""),
        answer=step.answer if step else None,
        unit=getattr(engine, "unit", "tokens"),
        grading=grading,
    )


def ending_of(step: Step, *, cut: bool, room: bool) -> Ending | None:
    """The one place that says how a turn ends an episode; None while it goes on.

    cut: a token budget ended the turn. room: the policy has tokens left to speak again.
    """
    # Half a turn that holds neither an answer nor a complete call is no choice of the policy, whatever it looks like.
    if cut and step.answer is None and not any(call.status == "ok" for call in step.calls):
        return "token_limit"
    if step.ending is not None:  # an answer, a void turn, a limit of turns, tokens or time: the environment's word
        return step.ending
    return None if room else "token_limit"


def fit_to(chat: Chat, env: Any) -> None:
    """Tell an environment that wants to know (`fit`) how the chat template has its policy speak."""
    fit = getattr(env, "fit", None)
    if fit is not None:
        fit(chat.syntax, chat.opens_thought)


async def _play(
    env: TextEnv,
    engine: Engine,
    chat: Chat,
    ledger: TokenRecord,
    sampling: Sampling,
    max_tokens: int,
    seed: int,
    history: History | None,
) -> tuple[Step | None, Ending]:
    """Turns until the environment or a budget ends the episode."""
    if len(ledger.token_ids) >= max_tokens:
        return None, "token_limit"  # the prompt alone fills the ledger
    while True:
        turn = await sample_turn(env, engine, chat, ledger, sampling, max_tokens, seed)
        step, ending = await take_turn(env, chat, ledger, turn, max_tokens, history)
        if ending is not None:
            return step, ending


async def take_turn(
    env: TextEnv, chat: Chat, ledger: TokenRecord, turn: Sampled, max_tokens: int, history: History | None = None
) -> tuple[Step, Ending | None]:
    """Hand a turn to the environment; it and the answer enter the ledger. The ending is None while it goes on."""
    *_, info = await env.astep(turn.text)
    step = env.trace[-1]
    starts = call_tokens(chat.tokenizer, turn.ids, step.calls)
    ledger.add_action(
        turn.ids,
        turn.logprobs,
        turn.versions,
        turn.text,
        step.calls,
        step.executions,
        starts,
        step.void,
        step.reward,
    )
    messages: Sequence[Mapping[str, Any]] = info["messages"] if step.ending is None else ()
    ids = chat.append(messages, turn.ids) if messages else []
    if messages and (kept := turns_kept(ledger.seen, step.keep, len(ids), max_tokens, history)) is not None:
        ledger.fold(kept)
    ending = ending_of(step, cut=turn.cut, room=len(ledger.context) + len(ids) < max_tokens)
    if ending is None:
        role: Role = "tool" if messages[0]["role"] == "tool" else "user"
        ledger.add_observation(role, ids, "\n".join(m["content"] for m in messages))
    return step, ending


async def sample_turn(
    env: TextEnv, engine: Engine, chat: Chat, ledger: TokenRecord, sampling: Sampling, max_tokens: int, seed: int
) -> Sampled:
    """Sample until the policy ends its turn, a call is complete, or the budget is spent; `ledger` stays as it is.

    max_tokens: of what the policy sees, this turn included. seed: of the episode.
    """
    prompt, before = ledger.context, len(ledger.token_ids)
    budget = min(max_tokens - len(prompt), sampling.max_tokens)
    turn = Sampled([], [], [])
    aborted = 0
    while True:
        so_far = prompt + turn.ids
        # Engines draw a request's numbers from its seed: each request of an episode needs its own.
        own_seed = (seed * 1_000_003 + before + len(turn.ids)) & 0x7FFFFFFFFFFFFFFF
        part = await engine.generate(so_far, replace(sampling, max_tokens=budget - len(turn.ids), seed=own_seed))
        turn.ids += part.token_ids
        turn.logprobs += part.logprobs
        turn.versions += part.versions
        closer = end_of_turn(chat.tokenizer, turn.ids, part, sampling.stop, chat.stop_token_ids)
        turn.text = decode(chat.tokenizer, turn.ids[:-1] if closer == "token" else turn.ids)
        if closer or env.complete(turn.text) is not None:
            return turn
        if part.finish == "length" or len(turn.ids) >= budget:
            turn.cut = True
            return turn
        # An engine that gave a request up has neither ended the turn nor spent its budget: the turn goes on.
        aborted = aborted + 1 if part.finish == "abort" else 0
        if aborted > ABORTS:
            raise EngineError(f"the engine aborted {aborted} requests of one turn, one after another")


def call_tokens(tokenizer: Any, ids: Sequence[int], calls: Sequence[ToolCall]) -> list[int]:
    """For each call the index of the token in which its span begins. `ids` are those of the turn's text."""
    found = []
    for call in calls:
        low, high = 0, max(len(ids) - 1, 0)  # the last token before which no more text than span[0] was written
        while low < high:
            middle = (low + high + 1) // 2
            if len(decode(tokenizer, ids[:middle])) <= call.span[0]:
                low = middle
            else:
                high = middle - 1
        found.append(low)
    return found


def seed_of(*parts: object) -> int:
    """A number in [0, 2^63) that depends on nothing but `parts`."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
