"""One grammar for everything that can be added: `spec` is a built-in name, an entry point, or "module:object".

A component is whatever its factory returns: a class, a frozen dataclass or a function. The factory's keywords are the
component's own options, and their annotations are checked: so each component owns its section of a configuration. What
the run hands over (`GIVEN`) comes by name to a factory that asks for it, and is no option.

Inside, a new component is a file, and a line in `BUILT_IN`. From outside it is an entry point of the group
`solostream.<kind>`, or "module:object" with nothing registered at all.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from solostream.errors import UserError

# kind -> name -> "module:object". Text, so that nothing is imported before it is asked for.
BUILT_IN: dict[str, dict[str, str]] = {
    "sandbox": {
        "fork": "solostream.sandbox.fork:ForkSandbox",
        "docker": "solostream.sandbox.docker:DockerSandbox",
        "docker-jupyter": "solostream.sandbox.docker:DockerJupyterSandbox",
        "jupyter": "solostream.sandbox.jupyter.sandbox:JupyterSandbox",
    },
    "tool": {
        "python": "solostream.envs.tools.python:PythonTool",
        "calculator": "solostream.envs.tools.calculator:Calculator",
        "search": "solostream.envs.tools.search:Search",
        "bash": "solostream.envs.tools.bash:Bash",
        "fold": "solostream.envs.tools.fold:Fold",
        "mcp": "solostream.envs.tools.mcp:open_mcp",
    },
    "syntax": {
        "fence": "solostream.envs.text.syntax.fence:Fence",
        "code": "solostream.envs.text.syntax.tags:code",
        "python": "solostream.envs.text.syntax.tags:python",
        "retool": "solostream.envs.text.syntax.tags:ReTool",
        "harmony": "solostream.envs.text.syntax.harmony:Harmony",
        "deepseek": "solostream.envs.text.syntax.deepseek:DeepSeek",
        "glm": "solostream.envs.text.syntax.xml:GLM",
        "qwen_xml": "solostream.envs.text.syntax.xml:QwenXML",
        "mistral": "solostream.envs.text.syntax.mistral:Mistral",
        "llama": "solostream.envs.text.syntax.llama:Llama",
        "pythonic": "solostream.envs.text.syntax.pythonic:Pythonic",
        "hermes": "solostream.envs.text.syntax.hermes:Hermes",
        "openai": "solostream.envs.text.syntax.openai:OpenAI",
    },
    "reward": {
        "correct": "solostream.envs.rewards.builtin:correct",
        "answered": "solostream.envs.rewards.builtin:answered",
        "well_formed": "solostream.envs.rewards.builtin:well_formed",
        "code_passes": "solostream.envs.rewards.builtin:code_passes",
        "otc": "solostream.envs.rewards.builtin:otc",
        "tapo": "solostream.envs.rewards.economy:tapo",
        "tiers": "solostream.envs.rewards.economy:Tiers",
        "judge": "solostream.envs.rewards.judge:Judge",
        "checklist": "solostream.envs.rewards.judge:Checklist",
        "code_tests": "solostream.envs.rewards.code_tests:CodeTests",
        "folder": "solostream.envs.rewards.folder:folder",
        "reasoning-gym": "solostream.envs.rewards.reasoning_gym:ReasoningGym",
    },
    "data": {
        "reasoning-gym": "solostream.envs.data.generators.reasoning_gym:ReasoningGym",
        "shell": "solostream.envs.data.generators.shell:Shell",
        "functions": "solostream.envs.data.generators.functions:Functions",
        "python-docs": "solostream.envs.data.generators.python_docs:PythonDocs",
    },
    "layout": {  # the first that matches is taken
        "verl": "solostream.envs.data.layouts.verl:Verl",
        "trl": "solostream.envs.data.layouts.trl:Trl",
        "trl-conversational": "solostream.envs.data.layouts.trl:Conversational",
        "messages": "solostream.envs.data.layouts.messages:Messages",
        "reasoning-gym": "solostream.envs.data.layouts.questions:ReasoningGym",
        "gsm8k": "solostream.envs.data.layouts.questions:Gsm8k",
        "question-answer": "solostream.envs.data.layouts.questions:Question",
        "math": "solostream.envs.data.layouts.competition:Math",
    },
    "engine": {
        "hf": "solostream.agent.engines.hf:open_hf",
        "vllm": "solostream.agent.engines.vllm.engine:VllmEngine.open",
        "server": "solostream.agent.engines.vllm.server:open_servers",
        "chat": "solostream.agent.engines.chat_endpoint:open_chat",
        "scripted": "solostream.agent.engines.scripted:open_script",
    },
    "answer": {
        "boxed": "solostream.envs.text.answers:boxed",
        "tag": "solostream.envs.text.answers:tag",
        "line": "solostream.envs.text.answers:line",
        "last_number": "solostream.envs.text.answers:last_number",
    },
    "sampler": {
        "prioritized": "solostream.training.rollouts.task_sampler:Prioritized",
        "uniform": "solostream.training.rollouts.task_sampler:Uniform",
        "dump": "solostream.training.rollouts.samplers.dump:Dump",
        "bands": "solostream.training.rollouts.samplers.bands:Bands",
        "hints": "solostream.training.rollouts.samplers.hints:Hints",
        "reformulate": "solostream.training.rollouts.samplers.reformulate:Reformulate",
        "direct": "solostream.training.rollouts.samplers.direct:Direct",
    },
    "rollout": {
        "episode": "solostream.agent.rollout:rollout",
        "window": "solostream.agent.context.window:window",
        "ead": "solostream.agent.exploration.annealing:EAD",
        "arpo": "solostream.agent.exploration.arpo:ARPO",
        "aepo": "solostream.agent.exploration.aepo:AEPO",
        "latr": "solostream.agent.exploration.latr:LATR",
        "segments": "solostream.agent.exploration.segments:Segments",
    },
    "tracker": {"wandb": "solostream.training.observers.wandb:open_wandb"},
    "metric": {},
    "callback": {},
    "environment": {},
    "advantage": {
        "spo": "solostream.training.advantages.spo:SPO",
        "grpo": "solostream.training.advantages.grpo:GRPO",
        "dr_grpo": "solostream.training.advantages.grpo:DrGRPO",
        "rloo": "solostream.training.advantages.rloo:RLOO",
        "reinforce_pp": "solostream.training.advantages.reinforce:ReinforcePlusPlus",
        "opo": "solostream.training.advantages.reinforce:OPO",
        "none": "solostream.training.advantages.reinforce:Reinforce",
        "maxrl": "solostream.training.advantages.maxrl:MaxRL",
        "maxrl_stream": "solostream.training.advantages.maxrl:MaxRLStream",
        "passk": "solostream.training.advantages.passk:PassK",
        "shrinkage": "solostream.training.advantages.shrinkage:Shrinkage",
        "optimal_token": "solostream.training.advantages.optimal_token:OptimalToken",
        "aspo": "solostream.training.advantages.aspo:ASPO",
        "inclusion_weights": "solostream.training.advantages.stages.inclusion_weights:InclusionWeights",
        "negative_weight": "solostream.training.advantages.stages.negative_weight:NegativeWeight",
        "negative_tokens": "solostream.training.advantages.stages.negative_tokens:NegativeTokens",
        "tool_cost": "solostream.training.advantages.stages.tool_cost:ToolCost",
        "improbable_tokens": "solostream.training.advantages.stages.improbable_tokens:ImprobableTokens",
        "empg": "solostream.training.advantages.credit.empg:EMPG",
        "dual_level": "solostream.training.advantages.credit.dual_level:DualLevel",
        "salt": "solostream.training.advantages.credit.salt:SALT",
        "gigpo": "solostream.training.advantages.credit.gigpo:GiGPO",
        "aepo": "solostream.training.advantages.credit.aepo:AEPO",
        "seed": "solostream.training.advantages.credit.seed:SEED",
        "d3s": "solostream.training.advantages.credit.d3s:D3S",
        "dcpo": "solostream.training.advantages.credit.dcpo:DCPO",
        "bnpo": "solostream.training.advantages.credit.bnpo:BNPO",
        "bnpo_stream": "solostream.training.advantages.credit.bnpo:BNPOStream",
        "tree_values": "solostream.training.advantages.tree.values:TreeValues",
        "arpo_attribution": "solostream.training.advantages.tree.arpo:ARPOAttribution",
        "tree_po": "solostream.training.advantages.tree.tree_po:TreePO",
        "segment_po": "solostream.training.advantages.tree.segment_po:SegmentPO",
        "prefix_once": "solostream.training.advantages.tree.prefix_once:PrefixOnce",
    },
    "loss": {
        "ppo_clip": "solostream.training.losses.ppo_clip:PPOClip",
        "cispo": "solostream.training.losses.cispo:CISPO",
        "gspo": "solostream.training.losses.gspo:GSPO",
        "clip_cov": "solostream.training.losses.clip_cov:ClipCov",
        "kl_cov": "solostream.training.losses.kl_cov:KLCov",
        "dppo": "solostream.training.losses.dppo:DPPO",
        "dcpo": "solostream.training.losses.dcpo:DCPO",
        "r2vpo": "solostream.training.losses.r2vpo:R2VPO",
        "sapo": "solostream.training.losses.sapo:SAPO",
        "aepo": "solostream.training.losses.aepo:AEPOClip",
    },
}
_ENGINE = (
    "model", "module", "tokenizer", "slots", "max_len", "seed", "dtype", "reproducible", "lora_rank", "transfer",
)  # fmt: skip
_ROLLOUT = (
    "leaves", "env", "engine", "chat", "sampling", "max_tokens", "task_id", "dispatch", "seed", "retries",
    "history",
)  # fmt: skip
# kind -> the keywords that the run hands over to a factory that asks for them
GIVEN: dict[str, tuple[str, ...]] = {
    "data": ("what", "seed"),
    "advantage": ("inner", "tracker", "logprobs", "entropies", "sampler"),
    "sampler": ("task_ids", "tasks", "tracker", "sources", "history", "seed", "batch"),
    "rollout": _ROLLOUT,
    "metric": ("trajectories",),
    "tracker": ("name", "folder", "config"),
    "callback": ("folder", "config"),
    "engine": _ENGINE,
}
# module that is missing -> the extra that brings it
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors", "peft"), "train"),
    **dict.fromkeys(("datasets", "pyarrow", "math_verify", "tensorboard", "matplotlib", "tomli_w"), "train"),
    **dict.fromkeys(("aiohttp", "fastapi", "uvicorn", "prometheus_client"), "server"),
    **dict.fromkeys(("jupyter_client", "ipykernel", "zmq"), "jupyter"),
    "docker": "docker",
    "torchao": "low-memory",
    **dict.fromkeys(("bitsandbytes", "accelerate"), "4bit"),
    "openai": "endpoint",
    "mcp": "mcp",
    "vllm": "vllm",
    "reasoning_gym": "reasoning-gym",
}


def names(kind: str) -> list[str]:
    """The built-in names and those of entry points."""
    return [*BUILT_IN.get(kind, {}), *(name for name in _plugins(kind) if name not in BUILT_IN.get(kind, {}))]


def find(kind: str, spec: str) -> str:
    """The "module:object" that `spec` names; nothing is imported. Raises UserError for a name that nothing has."""
    places = {**_plugins(kind), **BUILT_IN.get(kind, {})}
    if spec in places:
        return places[spec]
    module, colon, name = spec.partition(":")
    if colon and module and name:
        return spec
    raise UserError(f"unknown {kind} '{spec}'; {near(spec, places, 'package.module:Object')}")


def load(kind: str, spec: str) -> Any:
    """The object that `spec` names. Raises UserError with what to install, write or correct.

    A module of the current folder is found, too, whatever started this process; installed ones come first.
    """
    module, _, name = find(kind, spec).partition(":")
    see_current_folder(module)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.partition(".")[0] in EXTRAS:
            install = f"pip install 'solostream[{EXTRAS[missing.partition('.')[0]]}]'"
            raise UserError(f"{kind} '{spec}' needs the package '{missing}'; {install}") from error
        where = f"neither installed nor in {Path.cwd()}: start where its file is, or set PYTHONPATH to its folder"
        raise UserError(f"{kind} '{spec}': there is no module '{missing}'; it is {where}") from error
    except AttributeError:
        hint = get_close_matches(name, dir(importlib.import_module(module)), 1, 0.5)
        raise UserError(
            f"{kind} '{spec}': module '{module}' has no '{name}'" + (f"; did you mean '{hint[0]}'?" if hint else "")
        ) from None
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's module does while it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{kind} '{spec}' cannot be imported: {reason}") from error
    return found


def make(kind: str, spec: str, options: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """The component: its factory called with `options`, checked, and with those of `given` that it asks for.

    Raises UserError for an option that it does not have and for a value of the wrong type.
    """
    factory = _factory(kind, spec)
    offered = {name: value for name, value in given.items() if name in _parameters(factory)}
    arguments = {**offered, **check(kind, spec, options or {})}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{kind} '{spec}' cannot be made of its options: {error}") from None
    except ValueError:  # a builtin without a signature: it checks by itself
        pass
    return factory(**arguments)


def bind(kind: str, spec: str, options: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """As `make` for a class; a function is the component itself, with its options filled in. Raises UserError."""
    found = _factory(kind, spec)
    if inspect.isclass(found):
        return make(kind, spec, options, **given)
    chosen = check(kind, spec, options or {})
    return functools.partial(found, **chosen) if chosen else found


def asks(kind: str, spec: str, name: str) -> bool:
    """Whether the factory has a keyword `name`: so a component says that it wants what the run can hand over."""
    return name in _parameters(_factory(kind, spec))


def check(kind: str, spec: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as the component declares them, converted. Raises UserError, one line with the nearest name."""
    return checked(f"{kind} '{spec}'", _factory(kind, spec), options, GIVEN.get(kind, ()))


def defaults(kind: str, spec: str) -> dict[str, Any]:
    """The component's options and their values where a configuration says nothing; those that TOML can write."""
    own = _options(_factory(kind, spec), GIVEN.get(kind, ()))
    return {name: json.loads(json.dumps(p.default)) for name, p in own.items() if _writable(p.default)}


def near(word: str, known: Iterable[str], also: str = "") -> str:
    """The end of an error message: the nearest of `known`, and what else is allowed."""
    known = list(known)
    close = get_close_matches(word, known, 1, 0.5)
    allowed = f"allowed: {', '.join([*known, *([also] if also else [])])}"
    return f"did you mean '{close[0]}'? {allowed}" if close else allowed


def checked(what: str, factory: Callable[..., Any], options: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """`options` as `factory` declares them; names of `given` are no options. Raises UserError, one line."""
    from pydantic import ValidationError

    if not isinstance(options, Mapping):
        raise UserError(f"{what} has a section of options: key = value, not {options!r}")
    own = _options(factory, given)
    if any(p.kind is p.VAR_KEYWORD for p in _parameters(factory).values()):
        return dict(options)  # a factory that takes whatever comes checks by itself
    for name in options:
        if name not in own:
            raise UserError(f"{what} has no option '{name}'; {near(name, own) if own else 'it has none'}")
    model = _options_model(factory, tuple(own))
    try:
        try:  # as JSON: strict ("3" is no 3), and still a list is a tuple and a text a path
            made = model.model_validate_json(json.dumps(dict(options)), strict=True)
        except TypeError:  # an object that only Python can give
            made = model.model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "missing":
            raise UserError(f"{what} needs its option '{key}'") from None
        reason = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{what}: '{key}' cannot be {problem['input']!r}: {reason[:1].lower()}{reason[1:]}") from None
    wanted = {*options, *(name for name, p in own.items() if p.default is p.empty)}
    return {name: getattr(made, name) for name in own if name in wanted}


@functools.lru_cache(maxsize=256)
def _options_model(factory: Callable[..., Any], names: tuple[str, ...]) -> Any:
    """What checks these keywords of `factory`. Kept: making it takes longer than making most components."""
    from pydantic import ConfigDict, create_model

    own, hints = _parameters(factory), _hints(factory)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if own[name].default is inspect.Parameter.empty else own[name].default)
        for name in names
    }
    return create_model("Options", __config__=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False), **fields)


def _factory(kind: str, spec: str) -> Callable[..., Any]:
    found: Any = load(kind, spec)
    if not callable(found):
        raise UserError(f"{kind} '{spec}' is a {type(found).__name__}; name a class, or a function that makes one")
    return found  # type: ignore[no-any-return]


def _plugins(kind: str) -> Mapping[str, str]:
    return _entry_points(kind, tuple(sys.path))


@functools.lru_cache(maxsize=256)
def _entry_points(kind: str, path: tuple[str, ...]) -> Mapping[str, str]:
    """Once for each search path: asking opens a file of every installed package, and every environment asks."""
    return {point.name: point.value for point in entry_points(group=f"solostream.{kind}")}


def see_current_folder(module: str) -> None:
    """Put the current folder at the end of the path when only there `module` is found: it can shadow nothing."""
    here, top = str(Path.cwd()), module.partition(".")[0]
    try:
        missing = top not in sys.modules and find_spec(top) is None
    except (ImportError, ValueError):
        return
    if missing and here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _options(factory: Callable[..., Any], given: Iterable[str]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: p for name, p in _parameters(factory).items() if p.kind in kinds and name not in set(given)}


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # an annotation that exists only for the type checker: unchecked
        return {}


def _writable(value: Any) -> bool:
    try:
        return value is not inspect.Parameter.empty and value is not None and json.dumps(value, allow_nan=False) != ""
    except (TypeError, ValueError):
        return False
