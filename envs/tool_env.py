"""`ToolEnv`: a Gymnasium environment in which a policy writes text, calls tools and gives a final answer.

One turn (`step`) is one text of the policy. What ends an episode, in this order:
1. a turn or an episode over its token budget, or over its time: truncated, `token_limit` or `time_limit`;
2. a final answer: terminated, `answered`. Calls that begin before it are executed, for the record; later ones are not;
3. a turn with neither an answer nor a call, nor the try of one: terminated, `void`;
4. the last turn allowed: truncated, `turn_limit`; its calls are not executed, as nobody would read their output.
A call that cannot be read (malformed, never closed, or in another form than here), an unknown tool and wrong arguments
get an error message that says what was expected, and the episode goes on.
Only infrastructure failures raise (`SandboxError`, after retries); they are never an observation or a reward.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium

from solostream import registry
from solostream.envs import data
from solostream.envs.few_shot import FewShot, examples
from solostream.envs.rewards.episode import Episode, Score
from solostream.envs.rewards.grading import Rules
from solostream.envs.rewards.rubric import RewardSource, Rubric
from solostream.envs.space import SURROGATE, UnicodeText
from solostream.envs.text.answers import AnswerStyle, check_style, find_answer
from solostream.envs.text.budgets import TokenCounter, budget_note, check_limits, clip, token_counter
from solostream.envs.text.parse import Parsed, Parser, Think, begun, ends_inside, names_tools, stops
from solostream.envs.text.prompts import system_prompt as default_prompt
from solostream.envs.text.syntax import framed, syntaxes
from solostream.envs.tools import ToolSource, json_schema, tools_by_name
from solostream.envs.tools.running import run_call
from solostream.envs.types import EnvEnding, Grading, Step, Task, ToolCall, transcript
from solostream.envs.workspace import SandboxSource, Workspace
from solostream.errors import UserError
from solostream.sandbox.interpreter import wait
from solostream.sandbox.types import Execution

Message = dict[str, Any]


class ToolEnv(gymnasium.Env[str, str]):
    """Text in, text and a reward in [0, 1] out. `areset`/`astep` are the core; `reset`/`step` call them and wait.

    tasks: what `solostream.envs.data.tasks` takes (a preset, a path, a mapping, a list of `Task`).
    sandbox, sandbox_options: a spec string or a factory; opened once a process and shared (see `workspace`).
    tools: names, {"tool": name, **options} or factories; fence and tag syntaxes can call only `python`.
    syntax, think: see `text.parse`; "auto": the syntax that the model's chat template teaches (`fit`).
    parallel_calls: a turn may hold several calls (then only the policy ends its turn).
    answer: a style of `text.answers`. reward: see `rewards.rubric.Rubric`. grading: see `rewards.grading.Rules`.
    turn_reward: a rubric, too, that every turn is paid by at once, as if it were the whole episode.
    system_prompt: None: how to call and to answer; "": no system message. few_shot: see `envs.few_shot.examples`.
    timeout_s: of one call; None: the sandbox's limit. time_limit_s: of one episode, checked between calls.
    turn_tokens, output_tokens, episode_tokens: budgets of one turn, one tool output, and all text after the prompt,
    counted by `tokenizer` (see `text.budgets`). show_budget: tool messages end with what remains. tracebacks: False
    shows an exception as one line.
    retries: of a call whose sandbox failed; the session is rebuilt by running the episode's earlier calls again.

    Raises UserError for settings that make no sense together.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        tasks: data.TaskSource = "sample",
        *,
        sandbox: SandboxSource = "fork",
        sandbox_options: Mapping[str, Any] | None = None,
        tools: Sequence[ToolSource] = ("python",),
        syntax: str | Sequence[str] = "fence",
        think: Think = "run",
        parallel_calls: bool = False,
        answer: AnswerStyle = "boxed",
        reward: RewardSource = "correct",
        turn_reward: RewardSource | None = None,
        grading: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        few_shot: FewShot = 0,
        max_turns: int = 8,
        max_calls_per_turn: int = 8,
        timeout_s: float | None = None,
        time_limit_s: float | None = None,
        turn_tokens: int | None = None,
        output_tokens: int = 1024,
        episode_tokens: int | None = None,
        show_budget: bool = False,
        tracebacks: bool = True,
        tokenizer: str | TokenCounter | Callable[[], TokenCounter] | None = None,
        retries: int = 2,
        render_mode: str | None = None,
    ) -> None:
        check_style(answer)
        check_limits(None, max_turns=max_turns, max_calls_per_turn=max_calls_per_turn, output_tokens=output_tokens)
        check_limits(time_limit_s, turn_tokens=turn_tokens, episode_tokens=episode_tokens)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"unknown render mode {render_mode!r}; one of: {', '.join(self.metadata['render_modes'])}")
        self.observation_space, self.action_space, self.render_mode = UnicodeText(), UnicodeText(), render_mode
        self.tasks = data.tasks(tasks)
        self._think: Think = think
        Parser(think=think)  # refuses an unknown policy now, not in the first step
        self._parallel, self._answer_style = parallel_calls, answer
        self._rubric = Rubric(reward)
        self._turn_rubric = None if turn_reward is None else Rubric(turn_reward)
        self._rules = Rules(**registry.checked("grading", Rules, grading or {}, ()))
        self._tools = tools_by_name(tools)
        self._system_prompt, self._few_shot = system_prompt, few_shot
        self._instructions: tuple[Message, ...] = ()
        self._syntax: tuple[str, ...] = ()  # of "auto", until `fit`
        self._auto = syntax == "auto"
        if not self._auto:
            self._speak(syntaxes(syntax))
        self._max_turns, self._max_calls = max_turns, max_calls_per_turn
        self._turn_tokens, self._output_tokens, self._episode_tokens = turn_tokens, output_tokens, episode_tokens
        self._time_limit_s, self._show_budget, self._tracebacks = time_limit_s, show_budget, tracebacks
        self._counter = token_counter(tokenizer)
        self._workspace = Workspace(sandbox, sandbox_options or {}, timeout_s=timeout_s, retries=retries)
        self.task: Task | None = None
        self.trace: list[Step] = []
        self.over = True  # or not yet begun: only a reset goes on
        self._tokens, self._started = 0, 0.0
        self._reader: Parser | None = None  # of the turn that is being written
        self._opened = self._inside = False  # the template opens a thought; a call interrupted one in the last turn

    def fit(self, syntax: str, opens_thought: bool) -> None:
        """To a model's chat template, before `reset`: the call syntax that it teaches, which `syntax="auto"` takes on,
        and whether it writes the tag that opens a thought, so that a turn begins inside.
        """
        if self._auto and self._syntax != (syntax,):
            self._speak(syntaxes(syntax))
        self._opened = opens_thought

    def _speak(self, syntax: tuple[str, ...]) -> None:
        """Take these syntaxes. Raises UserError where a tool could not be called."""
        if not names_tools(syntax) and (others := set(self._tools) - {"python"}):
            raise UserError(f"tools {sorted(others)} need a call syntax that names its tool: set syntax='hermes'")
        told = default_prompt(syntax, self._answer_style) if self._system_prompt is None else self._system_prompt
        shown = examples(self._few_shot, syntax, self._answer_style, tuple(self._tools), self._parallel)
        self._syntax = syntax
        self._instructions = (*([{"role": "system", "content": told}] if told else []), *shown)

    @property
    def syntax(self) -> tuple[str, ...]:
        """How calls are written here."""
        return self._syntax

    @property
    def parallel_calls(self) -> bool:
        """Whether a turn may hold several calls."""
        return self._parallel

    @property
    def instructions(self) -> tuple[Message, ...]:
        """The messages before the question: the system's, if one is sent, and the examples. The caller's to change."""
        return copy.deepcopy(self._instructions)

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """JSON schemas for the chat template; none where the syntax is not the template's business."""
        if not names_tools(self._syntax):
            return ()
        return tuple(json_schema(tool) for tool in self._tools.values())

    @property
    def opening(self) -> tuple[Message, ...]:
        """The messages before the policy first speaks; none before the first reset."""
        if self.task is None:
            return ()
        return (*self.instructions, {"role": "user", "content": self.task.prompt})

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that may end a call: hints for an engine. Whether one did, `complete` or a parser says."""
        return () if self._parallel else stops(self._syntax)

    def complete(self, text: str) -> int | None:
        """Where a turn must stop: one past the first closed call in `text`; None while it may go on."""
        return None if self._parallel else self._read(text).stop

    def _read(self, text: str) -> Parser:
        """The parser of the turn that is being written, fed with `text`: what it has seen it does not read again.

        A turn is parsed once: piece by piece while `complete` is asked, to its end by the step.
        """
        if self._reader is None or not text.startswith(self._reader.text):
            self._reader = self.parser()
        self._reader.feed(text[len(self._reader.text) :])
        return self._reader

    def inside_call(self, text: str) -> bool:
        """Whether `text` ends in a call that is still open."""
        parser = self.parser()
        parser.feed(text)
        return parser.inside_call

    def parser(self, inside: bool | None = None) -> Parser:
        """A fresh incremental parser for one turn: `feed` says what `complete` says, without starting over.

        inside: whether the turn before left its thought open; None: as this episode stands.
        """
        inside = self._inside if inside is None else inside
        return Parser(self._syntax, think=begun(self._think, inside or self._opened))

    async def areset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode. options: {"task_id": …} or {"task": Task}; else the seeded generator draws a task.

        Raises UserError for an unknown task id.
        """
        super().reset(seed=seed)
        if not self._syntax:
            syntaxes("auto")  # raises: no template said which
        if self._workspace.loop not in (None, asyncio.get_running_loop()):
            self._workspace = self._workspace.successor()
        await self._workspace.end_episode()
        self.task = self._choose(options or {})
        self._workspace.begin(self.task.meta.get("files", {}))
        self.trace, self.over, self._tokens, self._started = [], False, 0, time.monotonic()
        self._inside, self._reader = False, None
        return self.task.prompt, {"messages": self.opening, "task_id": self.task.id}

    async def astep(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One turn of the policy. Raises SandboxError, of which RewardError is one: the episode has no reward then.

        It is over, and `reset` starts another.
        """
        if self.over or self.task is None:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() before step()")
        if not isinstance(text, str):
            raise UserError(f"an action is text (str), not {type(text).__name__}")
        self.over = True  # until this step has succeeded
        text = SURROGATE.sub("\ufffd", text)
        parsed, self._reader = self._read(text).finish(), None
        self._inside = parsed.inside
        final = find_answer(text, parsed, self._answer_style)
        if final and parsed.near_miss:  # who answers need not have tried to call
            parsed = replace(parsed, calls=())
        self._tokens += (tokens := self._count(text))
        ending = self._ending(tokens, parsed, final is not None)
        answer = final.answer if final and ending == "answered" else None
        self._workspace.keep = None
        executions, messages = await self._execute(parsed.calls, final.position if final else None, ending)
        self._tokens += sum(self._count(message["content"]) for message in messages)
        ending = ending or self._spent()
        keep = None if ending else self._workspace.keep
        step = Step(text, parsed.calls, executions, () if ending else messages, 0.0, ending, answer, keep=keep)
        if keep is not None:
            stay = [one.text for one in self.trace[max(len(self.trace) - keep, 0) :]]
            self._inside = ends_inside([*stay, text], self._syntax, self._think, self._opened)
        paid = await self._pay(step)
        if ending:
            step = await self._score(step, final.style if final and answer is not None else None)
            await self._workspace.end_episode()
        step = replace(step, reward=step.reward + paid)
        self.trace.append(step)
        self.over = ending is not None
        info = {
            "messages": tuple(dict(message) for message in step.messages),
            "task_id": self.task.id,
            "ending": ending,
            "answer": answer,
            "void": step.void,
            "scores": dict(step.grading.scores) if step.grading else {},
            **({} if keep is None else {"keep": keep}),
        }
        observation = "\n".join(message["content"] for message in step.messages)
        done = ending in ("answered", "void")
        return observation, step.reward, done, ending is not None and not done, info

    async def fork(self) -> ToolEnv:
        """A live copy in the middle of the episode: both go on, each by itself, and each is closed. See `workspace`."""
        twin = copy.copy(self)
        twin.trace, twin._reader, twin._workspace = list(self.trace), None, await self._workspace.fork()
        return twin

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """As `areset`, for callers without an event loop."""
        return wait(self.areset(seed=seed, options=options))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """As `astep`, for callers without an event loop."""
        return wait(self.astep(action))

    def render(self) -> str | None:
        """The transcript so far, for `render_mode="ansi"`."""
        if self.render_mode is None:
            return None
        return transcript(self.opening, self.trace)

    def close(self) -> None:
        """End the episode and give the sandbox back. Idempotent; callable from any thread."""
        self.over = True
        self._workspace.shutdown()

    async def aclose(self) -> None:
        """`close` for asynchronous callers: returns when everything is closed."""
        self.over = True
        if self._workspace.loop in (None, asyncio.get_running_loop()):
            await self._workspace.close()
        else:
            await asyncio.to_thread(self._workspace.shutdown)

    def _choose(self, options: Mapping[str, Any]) -> Task:
        if unknown := set(options) - {"task", "task_id"}:
            raise UserError(f"unknown reset options {sorted(unknown)}; there are: task, task_id")
        if "task" in options:
            if not isinstance(options["task"], Task):
                raise UserError(f"options['task'] must be an envs.Task, not {type(options['task']).__name__}")
            return options["task"]
        if "task_id" not in options:
            return self.tasks[int(self.np_random.integers(len(self.tasks)))]
        if (task := self.tasks.find(options["task_id"])) is None:
            raise UserError(f"no task {options['task_id']!r} among the {len(self.tasks)} of this environment")
        return task

    def _count(self, text: str) -> int:
        return len(self._counter.encode(text)) if self._turn_tokens or self._episode_tokens else 0

    def _ending(self, tokens: int, parsed: Parsed, has_answer: bool) -> EnvEnding | None:
        """How the turn's text alone ends the episode."""
        if self._turn_tokens and tokens > self._turn_tokens:
            return "token_limit"
        if self._episode_tokens and self._tokens > self._episode_tokens:
            return "token_limit"
        if self._out_of_time():
            return "time_limit"
        if has_answer:
            return "answered"
        if not parsed.calls:
            return "void"
        return "turn_limit" if len(self.trace) + 1 >= self._max_turns else None

    def _out_of_time(self) -> bool:
        return self._time_limit_s is not None and time.monotonic() - self._started > self._time_limit_s

    def _spent(self) -> EnvEnding | None:
        """Whether the tools used up a budget."""
        if self._episode_tokens and self._tokens >= self._episode_tokens:
            return "token_limit"
        return "time_limit" if self._out_of_time() else None

    async def _execute(
        self, calls: Sequence[ToolCall], before: int | None, ending: EnvEnding | None
    ) -> tuple[tuple[Execution | None, ...], tuple[Message, ...]]:
        """Run the calls in order. `before`: where the final answer begins; later calls are not run."""
        executions: list[Execution | None] = []
        messages: list[Message] = []
        for index, call in enumerate(calls):
            runs = ending is None or (ending == "answered" and before is not None and call.span[0] < before)
            if not runs or index >= self._max_calls or self._out_of_time():
                executions.append(None)
                continue
            tools = {} if self.task and self.task.meta.get("no_tool") else self._tools
            execution, said = await run_call(call, tools, self._workspace, tracebacks=self._tracebacks)
            content = clip(said, self._output_tokens, self._counter)
            executions.append(execution)
            name = call.name if call.name in self._tools else "unknown"  # whatever the policy wrote
            messages.append({"role": "tool", "name": name, "content": framed(self._syntax, content)})
        if messages and len(calls) > self._max_calls:
            messages[-1]["content"] += f"\nError: at most {self._max_calls} calls a turn; the others were not executed"
        if messages and self._show_budget:
            messages[-1]["content"] += self._remaining(messages)
        return tuple(executions), tuple(messages)

    def _remaining(self, messages: Sequence[Message]) -> str:
        """What the policy may still spend after reading this note, which costs tokens too."""
        turns = self._max_turns - len(self.trace) - 1
        left = self._episode_tokens - self._tokens if self._episode_tokens else None
        return budget_note(turns, left, [message["content"] for message in messages], self._count)

    async def _pay(self, step: Step) -> float:
        """What the turn earns by itself, whatever becomes of the episode. Raises RewardError."""
        if self._turn_rubric is None:
            return 0.0
        assert self.task is not None
        ending = step.ending or "turn_limit"  # cut here
        alone = Episode(self.task, (step,), step.answer, ending, self._max_turns, self._rules)
        return self._turn_rubric.total(await self._turn_rubric.scores(alone, self._workspace))

    async def _score(self, last: Step, style: str | None) -> Step:
        """The last step with its reward and how it came about. Raises RewardError."""
        assert self.task is not None
        assert last.ending is not None
        steps = (*self.trace, last)
        episode = Episode(self.task, steps, last.answer, last.ending, self._max_turns, self._rules)
        scores: dict[str, Score] = await self._rubric.scores(episode, self._workspace)
        grading = Grading(
            self.task.accepted,
            style,
            {name: score.value for name, score in scores.items()},
            {name: score.why for name, score in scores.items() if score.why},
        )
        return replace(last, reward=self._rubric.total(scores), grading=grading)
