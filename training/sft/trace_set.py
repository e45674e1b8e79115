"""The cold start on traces: rendered through the ledger of rollouts, verified in the sandbox, drawn in epochs.

Prompts, tool outputs and turns of weight 0 are never trained on; a turn that ends in a call ends there, as an engine's
does, and any other with the token that ends a turn. Step i draws what (run.seed, i) says: a resumed run sees the same
batches.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from solostream.agent.chat_template import Chat
from solostream.agent.rollout import fit_to
from solostream.agent.tokenization import encode
from solostream.agent.trajectory import TokenRecord
from solostream.envs.data import Tasks
from solostream.envs.data.sources import SUFFIXES
from solostream.envs.data.trace_rows import BadTrace, with_newlines
from solostream.envs.data.traces import PACKAGED, Trace, read_traces, told, trace_file
from solostream.envs.text.budgets import cuts, without_note
from solostream.envs.text.observation import observe
from solostream.envs.text.parse import names_tools
from solostream.envs.tool_env import ToolEnv
from solostream.envs.types import UNREADABLE
from solostream.errors import UserError
from solostream.sandbox.spec import open_sandbox
from solostream.sandbox.types import Execution, Sandbox
from solostream.training.config import Config
from solostream.training.learner.packing import MaskedTokens
from solostream.training.run import setup
from solostream.training.run.model import context_of
from solostream.training.run.setup import Components

AT_A_TIME = 8  # traces that are replayed together
VERIFIED = "verified-traces.json"


def refuse_bad(config: Config, tasks: Tasks) -> None:
    """Raises UserError for traces of this machine that are not there, or rows that are none: of what needs no model.

    What the Hub has is asked for by the run.
    """
    data = config.cold_start.data
    if data is None:
        return
    if not trace_file(data).exists():
        if data.count("/") == 1 and Path(data).suffix not in SUFFIXES:
            return
        near = get_close_matches(data, PACKAGED, 1, 0.6)
        hint = f"did you mean '{near[0]}'?" if near else "give a file of messages, a Hugging Face id, or first-calls"
        raise UserError(f"there are no traces '{data}': {hint}")
    env = setup.environment(config, tasks, None)
    try:
        _speaks(config, env)
        if env.syntax:  # else the model's chat template says which
            _, bad, at = read_traces(data, env.syntax, env.parallel_calls, tools=_names(env))
            _refuse_rows(config, bad, at)
    finally:
        env.close()


def longest_trace(config: Config, test: Tasks, tokenizer: Any, chat: Chat, *, here: bool) -> int | None:
    """Tokens of the longest trace, measured on the longest texts; 0 without `cold_start.data`.

    here: None for what the Hub has, which the run asks for. Raises UserError.
    """
    data = config.cold_start.data
    if data is None:
        return 0
    if here and not trace_file(data).exists():
        return None
    env = setup.environment(config, test, tokenizer)
    try:
        _speaks(config, env)
        fit_to(chat, env)
        traces, bad, at = read_traces(data, env.syntax, env.parallel_calls, chat.ends)
        _refuse_rows(config, bad, at)
        longest = sorted(_of_no_test(traces, test, data, lambda remark: None), key=_size)[-setup.LONGEST :]
        return max((_tokens(trace, chat, env) for trace in longest), default=0)
    finally:
        env.close()


def _size(trace: Trace) -> int:
    return sum(len(message["content"]) for message in trace.messages)


def _tokens(trace: Trace, chat: Chat, env: ToolEnv) -> int:
    try:
        return len(render(trace, chat, env)[0])
    except BadTrace:  # `TraceSet` says which, or leaves it out
        return 0


def _speaks(config: Config, env: Any) -> None:
    if not isinstance(env, ToolEnv):
        raise UserError(f"cold_start.data needs an environment whose policy calls tools; {config.env.id} is none")


def _names(env: ToolEnv) -> tuple[str, ...] | None:
    """Of the tools that a call may name; None where calls name none."""
    return tuple(tool["function"]["name"] for tool in env.tools) if names_tools(env.syntax) else None


def _refuse_rows(config: Config, bad: Mapping[str, Sequence[int]], at: str) -> None:
    c = config.cold_start
    if bad and not c.skip_bad:
        raise UserError(f"{c.data}: {told(bad, at)}. Fix these, or set cold_start.skip_bad = true")


def _of_no_test(traces: Sequence[Trace], test: Tasks, name: str, say: Callable[[str], None]) -> list[Trace]:
    """Without those in which a problem is asked that tests the run, as the pool of problems is without these.

    Raises UserError where none is left.
    """
    asked = {with_newlines(task.prompt).strip() for task in test}
    kept = [trace for trace in traces if asked.isdisjoint(_questions(trace))]
    if traces and not kept:
        raise UserError(f"every trace of {name} is of a held-out problem: give other traces, or another data.test_path")
    if len(kept) < len(traces):
        say(f"{name}: {len(traces) - len(kept)} of {len(traces)} traces are of held-out problems: left out of training")
    return kept


def _questions(trace: Trace) -> set[str]:
    return {message["content"].strip() for message in trace.messages if message["role"] == "user"}


class TraceSet:
    """All traces of a configuration but those of held-out problems; `held_out` and what is drawn are rendered.

    Raises UserError for rows that are none.
    """

    def __init__(self, config: Config, parts: Components, say: Callable[[str], None]) -> None:
        c = config.cold_start
        assert c.data is not None
        self._config, self._say = config, say
        env = setup.environment(config, parts.test, parts.tokenizer)
        _speaks(config, env)
        try:
            fit_to(parts.chat, env)
            traces, bad, self._at = read_traces(c.data, env.syntax, env.parallel_calls, parts.chat.ends, _names(env))
            self._traces = _of_no_test(traces, parts.test, c.data, say)
            rendered: dict[int, MaskedTokens] = {}
            limit = context_of(parts.model.config)
            for trace in self._traces:
                try:
                    ids, mask = render(trace, parts.chat, env)
                    if len(ids) > limit:
                        raise BadTrace(f"longer than the model's context of {limit} tokens")
                    rendered[trace.line] = (ids, mask)
                except BadTrace as error:
                    bad.setdefault(str(error), []).append(trace.line)
        finally:
            env.close()
        _refuse_rows(config, bad, self._at)
        if bad:
            say(f"{c.data}: left out {told(bad, self._at)}")
        said = json.dumps([trace.messages for trace in self._traces], ensure_ascii=False).encode(errors="replace")
        self.fingerprint = hashlib.blake2b(said, digest_size=8).hexdigest()
        self._rendered = rendered
        self._keep(rendered)

    def _keep(self, lines: Collection[int]) -> None:
        """Which traces there are, and on which side: a trace's side follows from its text alone."""
        c = self._config.cold_start
        traces = {trace.line: trace for trace in self._traces}
        kept = [line for line in self._rendered if line in lines]
        held_out = {line for line in kept if _fraction(traces[line]) < c.held_out}
        self.held_out = [self._rendered[line] for line in kept if line in held_out]
        self._train = [line for line in kept if line not in held_out]
        if not self._train:
            raise UserError(f"{c.data} holds no trace to train on: check cold_start.held_out, skip_bad and verify")

    @property
    def steps(self) -> int:
        """Supervised steps: as configured, else one pass over the traces."""
        c = self._config.cold_start
        return c.steps or -(-len(self._train) // c.batch)

    async def verify(self, folder: Path) -> None:
        """Leave out traces whose outputs the sandbox does not give; once a run, for its batches must not change."""
        place = folder / VERIFIED
        if not place.exists():
            e = self._config.env
            sandbox = open_sandbox(e.sandbox, **e.options.get("sandbox_options", {}))
            try:
                limit = asyncio.Semaphore(AT_A_TIME)
                checks = [_contradiction(trace, sandbox, e.timeout_s, limit) for trace in self._traces]
                found = await asyncio.gather(*checks)
            finally:
                await sandbox.close()
            kept = [t.line for t, why in zip(self._traces, found, strict=True) if not why]
            place.write_text(json.dumps(kept) + "\n", encoding="utf-8")
            self._tell({t.line: why for t, why in zip(self._traces, found, strict=True) if why})
        self._keep(set(json.loads(place.read_text(encoding="utf-8"))))

    def _tell(self, left_out: Mapping[int, str]) -> None:
        if not left_out:
            return
        reasons: dict[str, list[int]] = {}
        for line, why in left_out.items():
            reasons.setdefault(why, []).append(line)
        self._say(f"verify leaves out {len(left_out)} of {len(self._traces)} traces: {told(reasons, self._at)}")

    async def batches(self, start: int) -> AsyncIterator[tuple[int, list[MaskedTokens]]]:
        """Each step from `start` on and its sequences."""
        for step in range(start, self.steps):
            yield step, self.batch(step)

    def record(self, step: int, loss: float) -> None:
        """Nothing is left out, however small the loss."""

    def batch(self, step: int) -> list[MaskedTokens]:
        """Every trace once before any comes again, each time in another order."""
        size, count = self._config.cold_start.batch, len(self._train)
        last = self.steps * size if self._config.cold_start.steps else count
        places = range(step * size, min((step + 1) * size, last))
        orders = {epoch: self._order(epoch) for epoch in {place // count for place in places}}
        return [self._rendered[orders[place // count][place % count]] for place in places]

    def sample(self, update: int, count: int) -> list[MaskedTokens]:
        """`count` traces, at most all, for one update of reinforcement learning; by its number alone."""
        lines = random.Random(f"{self._config.run.seed}/imitation/{update}").sample(
            self._train, min(count, len(self._train))
        )
        return [self._rendered[line] for line in lines]

    def _order(self, epoch: int) -> list[int]:
        order = list(self._train)
        random.Random(f"{self._config.run.seed}/traces/{epoch}").shuffle(order)
        return order


def render(trace: Trace, chat: Chat, env: ToolEnv) -> MaskedTokens:
    """(token ids, mask of what the policy says), as a rollout of the same words in `env`, fitted to `chat`, has them.

    A trace's own system message takes the place of the environment's. Raises BadTrace for a turn that none can say.
    """
    messages, before = list(trace.messages), env.instructions
    if messages[0]["role"] == "system":
        before = (messages.pop(0), *(message for message in before if message["role"] != "system"))
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    ledger = TokenRecord()
    ledger.add_observation("user", chat.open([*before, *messages[:first]], env.tools), "")
    seen: list[dict[str, str]] = []
    spoken: list[int] = []
    inside = False  # the turn before left a thought open
    for message, after in pairwise([*messages[first:], {"role": "", "content": ""}]):
        if message["role"] != "assistant":
            seen.append(message)
            continue
        if spoken:
            ledger.add_observation("tool", chat.append(seen, spoken), "")
        inside = inside and bool(seen) and seen[-1]["role"] == "tool"
        text = chat.spoken(message["content"], calls=after["role"] == "tool", inside=inside)
        reader = env.parser(inside)
        reader.feed(text)
        spoken = encode(chat.tokenizer, text)
        if control := chat.control(spoken):
            raise BadTrace(f"{control} within what the assistant says, where it would end or begin anew: take it out")
        stopped = reader.stop is not None and text.endswith(env.stops)  # by the engine; else the policy ends its turn
        if not stopped:
            spoken.append(chat.stop_token_ids[0])
        inside = reader.finish().inside
        if "weight" in message:  # a turn that is only read
            ledger.add_observation("assistant", spoken, text)
        else:
            ledger.add_action(spoken, [0.0] * len(spoken), [0] * len(spoken), text)
        seen = []
    closed = ledger.close("", 0.0, "answered")
    return closed.token_ids, closed.action_mask


async def _contradiction(trace: Trace, sandbox: Sandbox, timeout_s: float, limit: asyncio.Semaphore) -> str:
    """Why its calls, run one after the other, do not print what the trace says they did; "" where they do."""
    if not trace.calls:
        return ""
    async with limit:
        session = await sandbox.open()
        try:
            for call, output in zip(trace.calls, trace.outputs, strict=True):
                if output.startswith(UNREADABLE):
                    continue  # nothing ran
                if call.status != "ok":
                    return f"a call that cannot be read ({call.status})"
                if call.name != "python":
                    return f"a call of '{call.name}', which is not replayed"
                seen = await session.run(call.code, timeout=timeout_s)
                if why := _difference(output, seen):
                    return why
        finally:
            await session.close()
    return ""


def _difference(output: str, seen: Execution) -> str:
    """Why an output of a trace is not what the sandbox gives; "" where it is.

    Of one that an environment cut (`output_tokens`), head and tail decide.
    """
    given = observe(seen), observe(seen, tracebacks=False)
    spellings = output, without_note(output)
    for said in spellings:
        if _words(said) in map(_words, given):
            return ""
        if seen.error is not None and _last(said) == _last(given[0]):
            return ""  # of an exception the last line decides: tracebacks name files
    pieces = [(_letters(head), _letters(tail)) for said in spellings for head, tail in cuts(said)]
    for whole in map(_letters, given):
        fits = (len(h) + len(t) <= len(whole) and whole.startswith(h) and whole.endswith(t) for h, t in pieces)
        if any(fits):
            return ""
    if pieces:
        return "the sandbox gives another output before or behind what was cut"
    return "the sandbox gives another output"


def _letters(text: str) -> str:
    """Without white space, of which a tokenizer may have changed some where it decoded a piece."""
    return "".join(text.split())


def _words(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _last(text: str) -> str:
    return _words(text).rpartition("\n")[2]


def _fraction(trace: Trace) -> float:
    text = json.dumps(trace.messages, sort_keys=True, ensure_ascii=False).encode(errors="replace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
