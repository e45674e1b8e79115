"""The sections of a configuration, as frozen pydantic models.

Every field is one key of the TOML file (`[section] key = value`) and of `--set section.key=value`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from solostream import registry
from solostream.training.config import branching, colocation, turn_rewards
from solostream.training.config.algorithm import AlgorithmConfig
from solostream.training.config.cluster import ClusterConfig
from solostream.training.config.cold_start import ColdStartConfig
from solostream.training.config.components import Options, beside_keys, complete, options_of
from solostream.training.config.learner import LearnerConfig, check_base, with_defaults
from solostream.training.config.section import Count, Levels, Names, Positive, Rate, Section, Seed, Temperature, TopK


class BuildConfig(Section):
    """Shape of a Qwen3-architecture model that is built from scratch; sizes in units, `context` in tokens."""

    hidden_size: Positive = 128  # of the residual stream
    layers: Positive = 2  # decoder blocks
    heads: Positive = 8  # of queries
    kv_heads: Positive = 4  # of keys and values: grouped-query attention
    head_dim: Positive = 16  # of one head
    mlp_size: Positive = 384  # hidden units of the gated MLP
    vocabulary: Positive = 640  # tokens of the BPE that is trained on the problems
    context: Positive = 1024  # longest prompt and response together


class ModelConfig(Section):
    """`path`: a Hugging Face id, a local folder, or "build" for a new model of the shape `build`.

    dtype: of weights that stay as they are (the base under adapters); what is trained is float32.
    4bit: the base's linear layers in NF4 (bitsandbytes), the rest of it bfloat16; only under `learner.lora`.
    sampler_dtype: of the weights that sample. auto: bfloat16 on a GPU, else that of the model.
    """

    path: str = "build"  # a Hugging Face id, a local folder, or "build"
    chat_template: str | None = None  # instead of the tokenizer's: a Jinja file, its source, or "chatml"
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)  # enable_thinking, reasoning_effort, ...
    date: str | None = None  # that a template which prints today's is told; default: the day on which the run began
    build: BuildConfig = BuildConfig()
    device: str = "auto"  # "cuda" where there is one, else "cpu"; or "cpu", "cuda", "cuda:1"
    dtype: Literal["float32", "bfloat16", "4bit"] = "float32"  # of weights that are not trained
    sampler_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the weights that sample


class DataConfig(Section):
    """`path` names a file, a folder, a preset, a Hugging Face id or a maker; without it problems are generated.

    What tests it: `test_path`, or the split `test_split`, or the share `test_share` of the problems, divided by the
    hash of each. Where nothing is said: the preset's own test; of a folder or a Hugging Face id its split "test"; of
    one list a tenth. Problems that are made ("reasoning-gym:gcd") have two sides; their options: [data.NAME].
    """

    model_config = ConfigDict(extra="allow")

    path: str | None = None  # a file, a folder, a preset, a Hugging Face id or a maker; not set: problems are generated
    test_path: str | None = None  # the same, of what is held out
    split: str | None = None  # default: "train", where there are splits
    test_split: str | None = None  # default: "test", where there are splits
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of one list, held out by the hash of each problem
    columns: dict[str, str] = Field(default_factory=dict)  # our field (prompt, answer, id, source, …) -> its column
    layout: str | None = None  # of the rows: a name or module:object; default: what they look like
    config: str | None = None  # of a Hugging Face data set that has several, for example "main"
    skip_bad: bool = False  # drop rows that are no problem, and say which
    kinds: Names = ()  # of generated problems; empty: all
    levels: Levels = ()  # of difficulty, of generated problems; empty: all
    train: Positive | None = None  # prompts in the pool; default: all there are, 512 of generated problems
    test: Positive = 256  # held out, at most
    seed: Seed = 0  # of generated problems: the same for every run.seed, so that runs compare

    @property
    def made(self) -> Options:
        """Component that makes problems -> its options."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _of_one_kind(self) -> DataConfig:
        beside_keys("data", self)
        generated = [name for name in ("kinds", "levels") if getattr(self, name)]
        if self.path is not None and generated:
            raise ValueError(f"{generated[0]} are of generated problems: leave them away, or path")
        loaded = ("test_path", "split", "test_split", "test_share", "columns", "layout", "config", "skip_bad")
        given = [name for name in loaded if getattr(self, name)]
        if self.path is None and given:
            raise ValueError(f"{given[0]} needs data.path: without it problems are generated")
        if self.test_share is not None and (self.test_path is not None or self.test_split is not None):
            raise ValueError("test_share divides one source: leave it away, or test_path and test_split")
        return self


class EnvConfig(Section):
    """The environment of an episode; limits in tokens. `options` go to `gymnasium.make` as they are."""

    id: str = "solostream/Arithmetic-v0"  # as gymnasium.make takes it
    sandbox: str = "fork"  # what runs the code: a backend, a server's URL, or one of your own
    max_turns: Positive = 4  # of the policy
    timeout_s: Annotated[float, Field(gt=0)] = 5.0  # of one tool call
    turn_tokens: Positive = 96  # sampled in one turn
    output_tokens: Positive = 32  # of one tool output
    episode_tokens: Positive = 256  # of the whole response, tool output included
    options: dict[str, Any] = Field(
        default_factory=dict
    )  # of the environment: syntax, answer, reward, system_prompt, …


class RolloutConfig(Section):
    """`sync` waits for each batch and is bit-reproducible on CPU; `async` learns while episodes go on.

    `lockstep` samples the next batch under the weights from before the update that goes on meanwhile: both at once, and
    as reproducible as `sync`.
    """

    model_config = ConfigDict(extra="allow")

    strategy: str = "episode"  # how an episode is played; its options: [rollout.NAME]
    mode: Literal["sync", "async", "lockstep"] = "async"  # how rollouts and the learner take turns
    # one GPU for both: vLLM and the learner "beside" each other, each with its share of the memory, or in "turns", in
    # which vLLM sleeps while the learner computes (sync); docs/engines.md
    colocate: Literal["no", "beside", "turns"] = "no"
    batch: Positive = 128  # trajectories a step ...
    batch_tokens: Count = 0  # ... or, when set, as many as bring this many action tokens
    over_provision: Annotated[float, Field(ge=1)] = 1.5  # episodes in flight = batch x this (async)
    max_staleness: Count = 4  # policy versions; older trajectories are not trained on
    # a batch is learnt in so many parts, each as soon as it has landed (async, one step a batch); docs/training.md
    learn_in_parts: Positive = 1
    stale: Literal["drop", "redispatch"] = "drop"  # what happens to a trajectory that is too old
    retries: Count = 2  # of an episode that the infrastructure failed
    temperature: Temperature = 1.0  # of what is trained on; the learner scores at the same
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # 1: the whole distribution
    top_k: TopK = 0  # 0: every token

    @model_validator(mode="after")
    def _strategy(self) -> RolloutConfig:
        registry.find("rollout", self.strategy)
        beside_keys("rollout", self)
        return self


class EvalConfig(Section):
    """Held-out evaluation: sampled at `temperature` and greedy, before and after; in between every `every` steps."""

    temperature: Temperature = 1.0  # of the sampled evaluation
    samples: Positive = 1  # a problem
    greedy: bool = True  # evaluate greedily, too
    every: Count = 0  # 0: only before and after


class RunConfig(Section):
    """Where the run lives and what it writes."""

    name: str | None = None  # default: the file's name
    root: str = "runs"  # the folder of all runs
    seed: Seed = 0  # of weights, prompts, sampling
    engine: str = "hf"  # what samples; its options: [engine.NAME]
    steps: Positive = 40  # of reinforcement learning: batches
    checkpoint_every: Positive = 20  # steps, of the cold start too
    keep: Positive = 2  # checkpoints
    trackers: Names = ()  # of experiments, beside TensorBoard: "wandb", or one of your own
    metrics: Names = ()  # of each batch, beside the built-in ones
    callbacks: Names = ()  # told of the start, of every step and of the end
    price_per_hour: Rate = 0.0  # of the machine, in any currency: what the run cost stands in its summary and pages
    tags: Names = ()  # what the start page of `solostream view` shows and finds a run by

    @model_validator(mode="after")
    def _known(self) -> RunConfig:
        registry.find("engine", self.engine)
        if self.engine in ("chat", "scripted"):
            raise ValueError(
                f"engine '{self.engine}' tells no tokens and takes no weights: it can be evaluated, not trained"
            )
        for kind, names in (("tracker", self.trackers), ("metric", self.metrics), ("callback", self.callbacks)):
            for name in names:
                registry.find(kind, name)
        return self


class Config(Section):
    """A whole run, one section each; see docs/training.md for what the keys mean."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    env: EnvConfig = EnvConfig()
    cold_start: ColdStartConfig = ColdStartConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    engine: options_of("engine") = Field(default_factory=dict)  # type: ignore[valid-type]  # [engine.NAME]
    sampler: options_of("sampler") = Field(default_factory=dict)  # type: ignore[valid-type]
    tracker: options_of("tracker") = Field(default_factory=dict)  # type: ignore[valid-type]
    metric: options_of("metric") = Field(default_factory=dict)  # type: ignore[valid-type]
    callback: options_of("callback") = Field(default_factory=dict)  # type: ignore[valid-type]
    loss: options_of("loss") = Field(default_factory=dict)  # type: ignore[valid-type]  # [loss.NAME]
    learner: LearnerConfig = LearnerConfig()
    eval: EvalConfig = EvalConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _schedules_end_with_the_run(cls, tree: Any) -> Any:
        """`total_steps` follows from the number of batches where the file does not say otherwise."""
        if not isinstance(tree, dict):
            return tree
        tree = copy.deepcopy(tree)
        _end_schedule(tree.get("learner"), _section(tree, "run").get("steps", RunConfig().steps))
        cold = _section(tree, "cold_start")
        phases = cold.get("phases", [])
        steps = [p.get("steps") for p in phases if isinstance(p, dict)] if isinstance(phases, list) else []
        steps = steps or [n for n in (cold.get("steps"),) if n is not None]
        if steps and all(isinstance(n, int) for n in steps):
            _end_schedule(cold.get("learner"), sum(steps))
        elif phases == [] and "data" not in cold and isinstance(cold.get("learner"), dict):
            for key in ("schedule", "warmup_steps", "total_steps"):  # of no steps: nothing that could end
                cold["learner"].pop(key, None)
        return tree

    @model_validator(mode="before")
    @classmethod
    def _own_problems_come_with_instructions(cls, tree: Any) -> Any:
        """Generated problems are for a built model that learns without a system message; others want one."""
        if not isinstance(tree, dict) or _section(tree, "data").get("path") is None or "id" in _section(tree, "env"):
            return tree
        return {**tree, "env": {"id": "solostream/Math-v0", **_section(tree, "env")}}

    @model_validator(mode="before")
    @classmethod
    def _each_learner_has_its_defaults(cls, tree: Any) -> Any:
        return with_defaults(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.rollout.batch_tokens and self.rollout.mode != "async":
            raise ValueError(
                f'rollout.batch_tokens needs rollout.mode = "async": {self.rollout.mode} waits for whole batches'
            )
        if self.algorithm.dynamic_sampling and self.rollout.mode == "lockstep":
            raise ValueError(
                'algorithm.dynamic_sampling draws prompts while a batch is played, which rollout.mode = "lockstep" '
                'cannot do and stay reproducible: use "sync" or "async"'
            )
        if self.rollout.batch % self.algorithm.group_size:
            raise ValueError(
                f"rollout.batch = {self.rollout.batch} is no multiple of algorithm.group_size = "
                f"{self.algorithm.group_size}"
            )
        discards = round(self.algorithm.dynamic_sampling * self.rollout.batch)
        if self.algorithm.dynamic_sampling and discards < self.algorithm.group_size:
            raise ValueError(
                f"algorithm.dynamic_sampling = {self.algorithm.dynamic_sampling:g} lets a batch discard {discards} "
                f"trajectories, less than one group of {self.algorithm.group_size}: set it to "
                f"{self.algorithm.group_size / self.rollout.batch:.3g} or more (3: three batches), or to 0"
            )
        check_base(self)
        branching.check(self)
        colocation.check(self)
        turn_rewards.check(self)
        _check_parts(self)
        if self.cluster.learners > 1 and (self.learner.masters == "bfloat16" or self.learner.moments == "8bit"):
            raise ValueError("learner.masters and learner.moments are for one learner: several share float32 out")
        if self.cold_start.begun and self.learner.offload_optimizer != self.cold_start.learner.offload_optimizer:
            raise ValueError(
                "both phases train the same masters: set learner.offload_optimizer and "
                "cold_start.learner.offload_optimizer alike (AdamW in both)"
            )
        if self.cluster.learners > 1 and self.learner.offload_optimizer:
            raise ValueError("learner.offload_optimizer is for one learner: several share the optimizer out")
        if self.learner.imitation is not None and self.cold_start.data is None:
            raise ValueError("learner.imitation imitates the traces of cold_start.data: set it, too")
        on_policy = self.rollout.mode == "sync" or self.learner.decoupled
        if self.learner.loss == "kl_cov" and on_policy and self.learner.num_mini_batches * self.learner.epochs == 1:
            raise ValueError(
                "loss kl_cov holds tokens near the policy before the update, and with one optimizer step a batch none "
                "has left it: set learner.num_mini_batches to 2 or more"
            )
        return self

    def hash(self) -> str:
        """Of everything that shapes the numbers: a resumed run must match. 16 hex digits."""
        return hashlib.sha256(json.dumps(self.resume_fingerprint(), sort_keys=True).encode()).hexdigest()[:16]

    def resume_fingerprint(self) -> dict[str, Any]:
        """The configuration without what may change on resume: where the run lives, how long it goes on, and how a
        batch is cut to fit into memory, which changes no gradient but for its rounding.
        """
        tree = self.model_dump(mode="json")
        tree["run"] = {"seed": self.run.seed}
        for beside in ("eval", "engine", "tracker", "metric", "callback", "cluster"):
            del tree[beside]
        del tree["rollout"]["colocate"]  # where they are computed, not what
        for learner in (tree["learner"], tree["cold_start"]["learner"]):
            for cut in ("max_tokens_per_batch", "logits_chunk", "gradient_checkpointing", "offload_optimizer"):
                del learner[cut]
        return tree

    def completed(self) -> Config:
        """The same run, with the defaults of its components written out: what a folder keeps."""
        a, used = self.algorithm, self.algorithm.components
        sections: dict[str, Any] = {
            "sampler": complete("sampler", self.sampler, [a.task_sampler]),
            "tracker": complete("tracker", self.tracker, self.run.trackers),
            "metric": complete("metric", self.metric, self.run.metrics),
            "callback": complete("callback", self.callback, self.run.callbacks),
            "engine": complete("engine", self.engine, [self.run.engine]),
            "loss": complete("loss", self.loss, [self.learner.loss]),
        }
        algorithm = a.model_copy(update=complete("advantage", a.options, used))
        sections["rollout"] = self.rollout.model_copy(
            update=complete("rollout", self.rollout.model_extra or {}, [self.rollout.strategy])
        )
        return self.model_copy(update={**sections, "algorithm": algorithm})

    def to_toml(self) -> str:
        """The complete configuration as TOML, defaults included: a run is repeated from this text alone."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _check_parts(config: Config) -> None:
    """Raises ValueError where a batch cannot be learnt in parts."""
    r, a, c = config.rollout, config.algorithm, config.learner
    if r.learn_in_parts == 1:
        return
    if r.mode != "async" or r.batch_tokens or a.dynamic_sampling:
        raise ValueError(
            'rollout.learn_in_parts takes parts of a batch as they land: it needs rollout.mode = "async", '
            "rollout.batch_tokens = 0 and algorithm.dynamic_sampling = 0"
        )
    if c.num_mini_batches * c.epochs > 1:
        raise ValueError("rollout.learn_in_parts is for one optimizer step a batch: num_mini_batches = epochs = 1")
    if r.batch % (r.learn_in_parts * a.group_size):
        raise ValueError(f"rollout.batch = {r.batch} cannot be cut into {r.learn_in_parts} equal parts of whole groups")
    if config.cluster.learners > 1:
        raise ValueError("rollout.learn_in_parts is for one learner: set cluster.learners = 1")


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name, {})
    return section if isinstance(section, dict) else {}


def _end_schedule(learner: Any, batches: Any) -> None:
    if isinstance(learner, dict) and learner.get("schedule", "constant") != "constant" and isinstance(batches, int):
        a_batch = [learner.get(name, 1) for name in ("num_mini_batches", "epochs")]
        if all(isinstance(n, int) for n in a_batch):
            learner.setdefault("total_steps", batches * a_batch[0] * a_batch[1])
