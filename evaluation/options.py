"""What an evaluation is asked for: the options of `solostream eval`, and what they mean together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from solostream import registry
from solostream.agent.chat_reply import Parameters
from solostream.agent.chat_template import Chat, read_template
from solostream.agent.engine import Sampling, check_seed, checked
from solostream.agent.run_settings import run_settings
from solostream.envs.data import is_made
from solostream.envs.data.sources import SUFFIXES
from solostream.envs.few_shot import fingerprint
from solostream.errors import UserError

ENV = "solostream/Math-v0"


@dataclass(frozen=True, slots=True)
class SamplingPreset:
    """Sampling of a kind of evaluation; max_tokens is of the whole episode, prompt included; turn_tokens of a turn."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int = 32_768
    turn_tokens: int | None = None

    def turn(self, room: int | None = None) -> Sampling:
        """Of one turn. room: tokens of the episode where they are fewer than `max_tokens`."""
        room = self.max_tokens if room is None else room
        tokens = room if self.turn_tokens is None else min(self.turn_tokens, room)
        return Sampling(tokens, self.temperature, self.top_p, self.top_k)


# "sampled" is the papers' setting (SPO arXiv 2509.13232, ASPO arXiv 2508.19201).
PRESETS: Mapping[str, SamplingPreset] = {
    "sampled": SamplingPreset(0.6, 0.95, 20),
    "greedy": SamplingPreset(0.0, 1.0, 0),
}


@dataclass(frozen=True)
class EvalOptions:
    """What `solostream eval` takes. A model that a run saved is played as in that run, unless options say otherwise."""

    model: tyro.conf.Positional[str]
    """A model folder or Hugging Face id, vllm:PATH, http://HOST:PORT, chat:URL#MODEL, or scripted:MODULE:FUNCTION."""
    env: str | None = None
    """A registered environment; default: the run's, else solostream/Math-v0."""
    data: str | None = None
    """Problems: a preset (aime25, math-500, …), a file, a folder, a Hugging Face id, or a maker of problems
    (reasoning-gym:chain_sum,gcd; its split "test"); default: what the run held out, else the environment's."""
    data_options: str = "{}"
    """Of a maker of problems, as JSON: '{"config": {"gcd": {"max_value": 99}}}'."""
    split: str | None = None
    """Of a folder or a Hugging Face data set."""
    columns: str = "{}"
    """Where the rows have none of the known layouts, our fields and their columns as JSON:
    '{"prompt": "question", "answer": "target"}'."""
    layout: str | None = None
    """Of the rows: a name (verl, trl, gsm8k, …) or module:object; default: what the first row looks like."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 1
    """Samples a problem."""
    out: Path | None = None
    """Output folder; default: evals/MODEL-DATA. An evaluation that is there already is resumed."""
    preset: Literal["sampled", "greedy"] | None = None
    """sampled: temperature 0.6, top-p 0.95, top-k 20, as in the papers. greedy: temperature 0. Default: as the run
    evaluates, else sampled; chat: what is not asked for is not sent, the server's own defaults hold."""
    temperature: float | None = None
    """Instead of the preset's."""
    top_p: float | None = None
    """Instead of the preset's."""
    top_k: int | None = None
    """Instead of the preset's; 0 is off."""
    max_tokens: int | None = None
    """Of an episode, prompt included; default: the run's, else 32768, or the model's context where that is less
    (chat: always the context)."""
    turn_tokens: int | None = None
    """Of one turn; default: the run's, else as many as the episode has."""
    tools: bool = True
    """--no-tools: text only, one turn, no interpreter."""
    env_options: str = "{}"
    """More settings of the environment, on top of the run's, as JSON: '{"max_turns": 4, "sandbox": "docker"}'."""
    rollout: str | None = None
    """How an episode is played: a rollout strategy (window); default: as in the run, else every turn stays in sight."""
    rollout_options: str = "{}"
    """Of the rollout strategy, as JSON: '{"pinned": 1}'."""
    limit: int | None = None
    """Only the first problems."""
    concurrency: int = 32
    """Episodes at a time."""
    metric: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """One of your own, module:function, on top of the others; as often as wanted."""
    tokenizer: str | None = None
    """Where it differs from the model's."""
    chat_template: str | None = None
    """Instead of the model's: a Jinja file, or chatml."""
    chat_template_kwargs: str | None = None
    """What else the template knows, as JSON: '{"enable_thinking": false}'; default: as in the run."""
    date: str | None = None
    """That a template which prints today's is told; default: the run's, else 2025-01-01."""
    seed: int | None = None
    """Of all samples; default: 0 (chat: none is sent)."""
    api_key_env: str | None = None
    """Environment variable that holds the key for chat:URL#MODEL or http://…; default: OPENAI_API_KEY."""
    extra_body: str = "{}"
    """chat: more fields of every request, as JSON: '{"reasoning_effort": "low"}'."""
    prices: tuple[float, ...] = ()
    """chat: what a million tokens cost, prompt and completion (and, if told, cached prompt): --prices 0.15 0.6"""
    price_per_hour: float = 0.0
    """What an hour of the machine costs on which an engine of your own plays; counted into the cost."""

    def settled(self) -> EvalOptions:
        """With the settings of the run that saved the model, if one did, where the options say nothing. Settling twice
        changes nothing more. Raises UserError.
        """
        run = run_settings(self.model)
        if run is None:
            return self
        given = self.settings()
        merged = run.under(given)
        if self.data is not None or self.env not in (None, run.env):
            merged = {name: value for name, value in merged.items() if name != "tasks" or name in given}
        names = ["env", "max_tokens", "turn_tokens", *(() if self.preset else ("temperature", "top_p", "top_k"))]
        names.append("date")
        open_ones = {name: getattr(run, name) for name in names if getattr(self, name) is None}
        if self.rollout is None and run.rollout:
            open_ones |= {"rollout": run.rollout, "rollout_options": json.dumps(dict(run.rollout_options))}
        if self.chat_template_kwargs is None and run.chat_template_kwargs:
            open_ones["chat_template_kwargs"] = json.dumps(dict(run.chat_template_kwargs))
        return replace(self, **open_ones, env_options=json.dumps(merged))

    @property
    def endpoint(self) -> bool:
        """Whether the model is asked for messages, not for tokens."""
        return self.model.startswith("chat:")

    def settings(self) -> dict[str, Any]:
        """`env_options` as a mapping. Raises UserError."""
        return json_object("--env-options", self.env_options, '{"max_turns": 4}')

    def tasks(self) -> dict[str, Any] | None:
        """The problems as an environment takes them; None: the environment's own. Raises UserError."""
        columns = json_object("--columns", self.columns, '{"prompt": "question"}')
        options = json_object("--data-options", self.data_options, '{"config": {}}')
        given = {"split": self.split, "columns": columns, "layout": self.layout, "data-options": options}
        about: dict[str, Any] = {name: value for name, value in given.items() if value}
        if self.data is None and about:
            raise UserError(f"--{next(iter(about))} is about --data: name a file, a folder or a Hugging Face id")
        if self.data is None:
            return None
        if is_made(self.data) and self.limit is not None:
            about["limit"] = self.limit
        return {"load": self.data, **{name.removeprefix("data-"): value for name, value in about.items()}}

    def chat(self, tokenizer: Any) -> Chat:
        """What renders the messages for an engine. Raises UserError."""
        variables = json_object(
            "--chat-template-kwargs", self.chat_template_kwargs or "{}", '{"enable_thinking": false}'
        )
        return Chat(tokenizer, read_template(self.chat_template), variables=variables, date=self.date)

    def strategy(self) -> Any:
        """What plays an episode. Raises UserError."""
        options = json_object("--rollout-options", self.rollout_options, '{"pinned": 1}')
        if options and self.rollout is None:
            raise UserError("--rollout-options are of --rollout: name the strategy")
        if self.rollout is not None and self.endpoint:
            raise UserError("--rollout is for models that sample tokens: a chat endpoint has its own context")
        name = self.rollout or "episode"
        if registry.asks("rollout", name, "leaves"):
            raise UserError(f"--rollout {name} grows trees to learn from: an evaluation plays independent episodes")
        return registry.bind("rollout", name, options)

    def sampling(self) -> SamplingPreset:
        """The preset with the options' own values. Raises UserError."""
        base = PRESETS[self.preset or "sampled"]
        own = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "max_tokens", "turn_tokens")}
        chosen = SamplingPreset(
            **{name: getattr(base, name) if value is None else value for name, value in own.items()}
        )
        checked(chosen.turn())
        self._check(chosen.temperature)
        return chosen

    def parameters(self) -> Parameters:
        """What a chat endpoint is sent: a named preset's values, and the options' own. Raises UserError."""
        base = asdict(PRESETS[self.preset]) if self.preset else {}
        own = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        own = {name: base.get(name) if value is None else value for name, value in own.items()}
        own["top_k"] = own["top_k"] or None  # 0 is off, and not in OpenAI's protocol
        given = {name: value for name, value in own.items() if value is not None}
        checked(Sampling(self.turn_tokens or 1, **given))
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError("--max-tokens must be at least 1")
        if len(self.prices) not in (0, 2, 3) or not all(0 <= price < math.inf for price in self.prices):
            raise UserError("--prices takes two numbers or three: of a million prompt, completion and cached tokens")
        self._check(own["temperature"])
        extra = json_object("--extra-body", self.extra_body, '{"reasoning_effort": "low"}')
        return Parameters(**own, max_tokens=self.turn_tokens, seed=self.seed, extra=extra)

    def _check(self, temperature: float | None) -> None:
        if self.k < 1 or self.concurrency < 1 or (self.limit is not None and self.limit < 1):
            raise UserError("-k, --concurrency and --limit must be at least 1")
        check_seed(self.seed)
        if not 0 <= self.price_per_hour < math.inf:
            raise UserError("--price-per-hour is what an hour of the machine costs: a number from 0 on")
        if temperature == 0 and self.k > 1:
            raise UserError(f"greedy samples are all the same: -k {self.k} would play each {self.k} times; use -k 1")

    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return self.out
        run = run_settings(self.model)
        name = self.model.partition("#")[2] if self.endpoint else self.model
        model = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2] or self.model).strip("-")
        model = f"{run.run}-{model}" if run else model  # step-000060 alone says nothing
        env = self.env or (run.env if run else ENV)
        path = Path(self.data or env)  # a data set's name may have points: only what marks a file goes
        data = re.sub(r"[^\w.-]+", "-", path.stem if path.suffix in SUFFIXES else path.name)
        return Path("evals") / f"{model}-{data}{'' if self.tools else '-text'}{'-greedy' * (self.preset == 'greedy')}"

    def identity(self) -> dict[str, Any]:
        """What the samples depend on, of settled options: a resumed evaluation must agree in all of it."""
        own = {
            name: getattr(self, name)
            for name in ("model", "data", "data_options", "split", "columns", "layout", "tools", "env_options")
        }
        if self.rollout is not None:
            own |= {"rollout": self.rollout, "rollout_options": self.rollout_options}
        if shown := fingerprint(self.settings().get("few_shot")):
            own["few_shot"] = shown
        if self.endpoint:
            sent = {**asdict(self.parameters()), "max_tokens": self.max_tokens, "turn_tokens": self.turn_tokens}
            return {"env": self.env or ENV, **own, **sent}
        of_chat = {name: getattr(self, name) for name in ("chat_template", "chat_template_kwargs", "date")}
        return {"env": self.env or ENV, **own, "seed": self.seed or 0, **asdict(self.sampling()), **of_chat}


def json_object(option: str, text: str, example: str) -> dict[str, Any]:
    """What an option that takes JSON holds. Raises UserError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{option} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{option} must be a JSON object, for example '{example}'")
    return found
