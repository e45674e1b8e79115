"""`Trajectory`: the one record that flows from rollout to gradient to disk to viewer.

An append-only token ledger. The concatenated ids are exactly what the model saw: text is never re-tokenised, and the
action mask is born at sampling and never rebuilt. Where history was replaced (folded, or out of a window) the ledger
goes on in a new segment: a turn of the role "context" repeats the ids of the turns that stay, and what is sampled from
then on saw that segment alone. Segments share one outcome; most trajectories have one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import orjson

from solostream.agent.exploration.tree import Branch
from solostream.envs.types import Grading, ToolCall
from solostream.sandbox.types import Execution

Ending = Literal["answered", "void", "turn_limit", "token_limit", "time_limit", "infra"]
Role = Literal["system", "user", "assistant", "tool", "context"]
Unit = Literal["tokens", "bytes"]


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens `start:end` of the ledger. For an assistant turn `call_tokens[i]` is where `calls[i]` begins.

    reward: what the environment paid for this turn, on its own scale; most pay once, with the last one.
    kept: of a turn "context", which opens a segment: the places of the turns whose ids it repeats, in order; its text
    says it in words.
    """

    role: Role
    start: int
    end: int
    text: str
    calls: tuple[ToolCall, ...] = ()
    executions: tuple[Execution | None, ...] = ()
    call_tokens: tuple[int, ...] = ()
    void: bool = False  # an assistant turn with neither a complete call nor a final answer
    reward: float = 0.0
    reasoning: str = ""  # thoughts that an endpoint keeps apart: no part of `text`, nothing in them is executed
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an endpoint counted and bills, in its own tokens, over all requests of an episode.

    cached_tokens are some of prompt_tokens, reasoning_tokens some of completion_tokens.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, n) + getattr(other, n) for n in Usage.__slots__))


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Frozen when the trajectory starts: SPO++ (arXiv 2608.24870) reads its baseline here, never at arrival."""

    event: int = 0
    value: float | None = None  # the tracker's v₋₁ at dispatch
    version: int = 0  # the policy version that was current
    group: int | None = None  # trajectories of one GRPO/RLOO group share it


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One episode in tokens. All arrays have the length of `token_ids`.

    token_ids: int32; action_mask: bool, True only for tokens the policy sampled; logprobs: float32, the sampler's own,
    NaN (JSON null) where nothing was sampled; versions: int32, the policy version of a sampled token, -1 elsewhere.
    reward: of the episode, the sum of its turns'; in training mapped onto [0, 1].
    An endpoint says how many tokens it read and wrote, not which: their ids are -1, they have no logprob and no part in
    the mask. unit: what one entry of the ledger is; bytes of a script, and of an endpoint that counts nothing.
    usage: of an endpoint that counts. Raises ValueError when lengths differ, or when a sampled token has no logprob.
    """

    task_id: str
    token_ids: np.ndarray
    action_mask: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    turns: tuple[Turn, ...]
    reward: float
    ending: Ending
    dispatch: Dispatch = field(default_factory=Dispatch)
    seed: int = 0
    source: str = ""
    kind: str = ""  # of the problems of that source
    answer: str | None = None
    unit: Unit = "tokens"
    usage: Usage | None = None
    grading: Grading | None = None  # how the reward came about; None: the environment did not say
    branch: Branch | None = None  # its place in a tree of episodes that begin alike
    line: bytes | None = field(default=None, init=False, repr=False)  # of JSON, where it has been made; not copied

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.token_ids, self.action_mask, self.logprobs, self.versions)}
        if len(lengths) != 1:
            raise ValueError(f"ledger columns of {self.task_id} have different lengths: {sorted(lengths)}")
        if np.isnan(self.logprobs[self.action_mask]).any() or (self.versions[self.action_mask] < 0).any():
            raise ValueError(f"a sampled token of {self.task_id} has no logprob or no policy version")
        if self.turns and self.turns[-1].end != len(self.token_ids):
            raise ValueError(f"the turns of {self.task_id} do not cover its ledger")

    def __len__(self) -> int:
        return len(self.token_ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and self.to_dict() == other.to_dict()

    @property
    def prompt_length(self) -> int:
        """Tokens before the policy first spoke."""
        return next((t.start for t in self.turns if t.role == "assistant"), len(self))

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """(start, end) in the ledger of each sequence that the model saw; one of all of it where nothing was folded."""
        starts = [0, *(turn.start for turn in self.turns if turn.role == "context")]
        return tuple(zip(starts, [*starts[1:], len(self)], strict=True))

    @property
    def n_action_tokens(self) -> int:
        """How many tokens the policy wrote: the sum of `action_mask`."""
        return int(self.action_mask.sum())

    @property
    def response_length(self) -> int:
        """Tokens after the prompt, tool output included; what a later segment repeats counts once."""
        return len(self) - self.prompt_length - self._repeated(len(self))

    @property
    def n_calls(self) -> int:
        """Calls that were executed ("code rounds")."""
        return sum(e is not None for t in self.turns for e in t.executions)

    @property
    def first_call_token(self) -> int | None:
        """Position in the response of the first complete tool call; None where there is none."""
        for turn in self.turns:
            for call, token in zip(turn.calls, turn.call_tokens, strict=True):
                if call.status == "ok":
                    return token - self.prompt_length - self._repeated(token)
        return None

    def _repeated(self, before: int) -> int:
        """Tokens before the place `before` that a segment took over from an earlier one."""
        return sum(turn.end - turn.start for turn in self.turns if turn.role == "context" and turn.end <= before)

    @property
    def code_pass_ratio(self) -> float | None:
        """Share of the executed calls that ended without an error; None without calls."""
        done = [e.ok for t in self.turns for e in t.executions if e is not None]
        return sum(done) / len(done) if done else None

    @property
    def void(self) -> bool:
        """Whether any turn held neither a call nor an answer (SimpleTIR, arXiv 2509.02479)."""
        return any(t.void for t in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        return {
            **self._fields(),
            "token_ids": self.token_ids.tolist(),
            "action_mask": self.action_mask.astype(int).tolist(),
            # the shortest decimals that read back as the same float32: a resumed run trains on the very numbers
            "logprobs": [None if x != x else float(str(x)) for x in self.logprobs],
            "versions": self.versions.tolist(),
        }

    def _fields(self) -> dict[str, Any]:
        """All but the columns of the ledger, in plain JSON types."""
        return {
            "task_id": self.task_id,
            "source": self.source,
            "kind": self.kind,
            "reward": self.reward,
            "ending": self.ending,
            "answer": self.answer,
            "grading": self.grading and self.grading.to_dict(),
            "seed": self.seed,
            "dispatch": {n: getattr(self.dispatch, n) for n in ("event", "value", "version", "group")},
            "turns": [
                {
                    "role": t.role,
                    "start": t.start,
                    "end": t.end,
                    "text": t.text,
                    "calls": [c.to_dict() for c in t.calls],
                    "executions": [e and e.to_dict() for e in t.executions],
                    "call_tokens": list(t.call_tokens),
                    "void": t.void,
                    "reward": t.reward,
                    **({"reasoning": t.reasoning} if t.reasoning else {}),
                    **({"kept": list(t.kept)} if t.role == "context" else {}),
                }
                for t in self.turns
            ],
            **({"branch": self.branch.to_dict()} if self.branch else {}),
            "unit": self.unit,
            "usage": self.usage and asdict(self.usage),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Trajectory:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError on a damaged record."""
        turns = tuple(
            Turn(
                t["role"],
                t["start"],
                t["end"],
                t["text"],
                tuple(ToolCall.from_dict(c) for c in t["calls"]),
                tuple(e and Execution.from_dict(e) for e in t["executions"]),
                tuple(t["call_tokens"]),
                t["void"],
                t["reward"],
                t.get("reasoning", ""),
                tuple(t.get("kept", ())),
            )
            for t in record["turns"]
        )
        return cls(
            task_id=record["task_id"],
            token_ids=np.asarray(record["token_ids"], np.int32),
            action_mask=np.asarray(record["action_mask"], bool),
            logprobs=np.asarray([np.nan if x is None else x for x in record["logprobs"]], np.float32),
            versions=np.asarray(record["versions"], np.int32),
            turns=turns,
            reward=record["reward"],
            ending=record["ending"],
            dispatch=Dispatch(**record["dispatch"]),
            seed=record["seed"],
            source=record["source"],
            kind=record["kind"],
            answer=record["answer"],
            unit=record["unit"],
            usage=record["usage"] and Usage(**record["usage"]),
            grading=record["grading"] and Grading.from_dict(record["grading"]),
            branch=Branch.from_dict(record["branch"]) if record.get("branch") else None,
        )

    def to_json(self) -> str:
        """One line of JSON; `from_dict` is the inverse."""
        # orjson writes arrays as they are, a float32 in the shortest decimals that read back as it, NaN as null: twenty
        # times faster, and whoever logs thousands of episodes a step holds Python's lock no longer than that.
        columns = {name: getattr(self, name) for name in ("token_ids", "logprobs", "versions")}
        columns["action_mask"] = self.action_mask.astype(np.uint8)
        record = {**self._fields(), **{name: np.ascontiguousarray(column) for name, column in columns.items()}}
        try:
            if math.isfinite(self.reward):
                return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        except TypeError:  # it knows no integers beyond 64 bits and no half of a surrogate pair; a call may hold both
            pass
        return json.dumps(self.to_dict(), separators=(",", ":"))

    def with_line(self) -> Trajectory:
        """This one, which brings its line of JSON along to whoever writes it."""
        object.__setattr__(self, "line", self.to_json().encode())
        return self

    def take_line(self) -> bytes:
        """Its line of JSON without the newline; one that it brought along is forgotten."""
        line = self.line or self.to_json().encode()
        object.__setattr__(self, "line", None)
        return line


class TokenRecord:
    """Builds a `Trajectory`: tokens are only ever appended."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._mask: list[bool] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self._turns: list[Turn] = []
        self._seen: list[int] = []  # places of the turns that the policy sees now
        self._segment = 0  # where the segment begins that is written now

    @property
    def context(self) -> list[int]:
        """Ids of what the policy sees now: the ledger itself until history is replaced. Not to be changed."""
        return self.token_ids[self._segment :] if self._segment else self.token_ids

    @property
    def seen(self) -> tuple[Turn, ...]:
        """The turns that the policy sees now, the opening first."""
        return tuple(self._turns[place] for place in self._seen)

    @property
    def earned(self) -> float:
        """What the environment has paid so far."""
        return math.fsum(turn.reward for turn in self._turns)

    def fork(self) -> TokenRecord:
        """A copy that goes on by itself."""
        twin = TokenRecord()
        for column in ("token_ids", "_mask", "_logprobs", "_versions", "_turns", "_seen"):
            setattr(twin, column, list(getattr(self, column)))
        twin._segment = self._segment
        return twin

    def add_observation(self, role: Role, token_ids: Sequence[int], text: str) -> None:
        """Append tokens that the policy did not sample: the prompt, a tool's output, template glue."""
        start = len(self.token_ids)
        self._append(token_ids, False, [float("nan")] * len(token_ids), [-1] * len(token_ids))
        self._add(Turn(role, start, len(self.token_ids), text))

    def fold(self, kept: Sequence[int]) -> None:
        """Begin a segment in which the policy sees, of the turns in `seen`, those at the places `kept` and no others.

        Their ids are copied, as they were sampled and observed.
        """
        places = tuple(self._seen[place] for place in kept)
        turns = [self._turns[place] for place in places]
        ids = [i for turn in turns for i in self.token_ids[turn.start : turn.end]]
        self._segment = len(self.token_ids)
        self._append(ids, False, [float("nan")] * len(ids), [-1] * len(ids))
        own = [place for place, turn in enumerate(self._turns) if turn.role == "assistant"]
        told = f"From here on the policy sees the opening and {len(set(own) & set(places))} of its {len(own)} turns."
        self._turns.append(Turn("context", self._segment, len(self.token_ids), told, kept=places))
        self._seen = list(places)

    def add_action(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        versions: Sequence[int],
        text: str,
        calls: Sequence[ToolCall] = (),
        executions: Sequence[Execution | None] = (),
        call_tokens: Sequence[int] = (),
        void: bool = False,
        reward: float = 0.0,
        reasoning: str = "",
    ) -> None:
        """Append one turn of the policy; `call_tokens` are offsets within this turn's tokens.

        A sampler that did not tell its probabilities (NaN) gives a turn that can be read and scored, but not trained
        on.
        """
        start = len(self.token_ids)
        told = not any(math.isnan(x) for x in logprobs)
        self._append(token_ids, told, logprobs, versions if told else [-1] * len(token_ids))
        turn_calls = tuple(start + offset for offset in call_tokens)
        self._add(
            Turn(
                "assistant",
                start,
                len(self.token_ids),
                text,
                tuple(calls),
                tuple(executions),
                turn_calls,
                void,
                reward,
                reasoning,
            )
        )

    def _add(self, turn: Turn) -> None:
        self._seen.append(len(self._turns))
        self._turns.append(turn)

    def _append(self, ids: Sequence[int], action: bool, logprobs: Sequence[float], versions: Sequence[int]) -> None:
        self.token_ids.extend(ids)
        self._mask.extend([action] * len(ids))
        self._logprobs.extend(logprobs)
        self._versions.extend(versions)

    def close(self, task_id: str, reward: float, ending: Ending, **fields: Any) -> Trajectory:
        """Freeze. `fields` are the remaining fields of `Trajectory`."""
        return Trajectory(
            task_id=task_id,
            token_ids=np.asarray(self.token_ids, np.int32),
            action_mask=np.asarray(self._mask, bool),
            logprobs=np.asarray(self._logprobs, np.float32),
            versions=np.asarray(self._versions, np.int32),
            turns=tuple(self._turns),
            reward=reward,
            ending=ending,
            **fields,
        )
