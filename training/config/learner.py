"""What the learner can be told. Light: reading a configuration needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from solostream import registry
from solostream.training.config.section import Bounds, Count, Decay, Names, Positive, Rate, Section

if TYPE_CHECKING:
    from solostream.training.config.models import Config

# What a learner starts from where its section does not say: a pretrained model breaks at the rates that a random one
# of half a million parameters needs.
BUILT: dict[str, Any] = {"lr": 5e-4}
PRETRAINED: dict[str, Any] = {"lr": 1e-6}
IMITATED_BY_BUILT: dict[str, Any] = {"optimizer": "muon", "lr": 2e-3}  # in a cold start
IMITATED: dict[str, Any] = {"lr": 1e-4}

Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum"]


class LoraConfig(Section):
    """Adapters by peft on the named linear layers; the base weights stay as they are."""

    rank: Positive = 16  # of each adapter
    alpha: Positive = 32  # an adapter's product is scaled by alpha / rank
    # names of linear layers, or all of them
    targets: str | Names = "all-linear"


def check_base(config: Config) -> None:
    """Raises ValueError where a base in 4 bits would have to be trained, or cannot be had."""
    if config.model.dtype != "4bit":
        return
    cold = config.cold_start
    other = 'or model.dtype = "bfloat16"'
    if config.learner.lora is None:
        raise ValueError(
            f'model.dtype = "4bit" is of a base under adapters: set learner.lora = {{ rank = 16 }}, {other}'
        )
    if config.model.path == "build":
        raise ValueError(f'model.dtype = "4bit" is of a model that is loaded: set model.path, {other}')
    if cold.begun:
        raise ValueError(
            'a cold start changes the base, and model.dtype = "4bit" has no room for changes: run it first, with '
            'model.dtype = "bfloat16" (`solostream sft`), and set model.path to its checkpoint'
        )
    if config.cluster.learners > 1:
        raise ValueError(f'model.dtype = "4bit" is for one learner: set cluster.learners = 1, {other}')


class ImitationConfig(Section):
    """Traces of `cold_start.data` beside each batch (docs/algorithms.md): (1 − μ)·policy loss + μ·imitation."""

    loss: Literal["sft", "dft", "chord", "one_token"] = "chord"  # what a demonstrated token weighs
    weight: Annotated[float, Field(gt=0, lt=1)] = 0.1  # μ
    decay_steps: Count = 0  # optimizer steps until μ is 0, along a cosine; 0: it stays
    batch: Positive = 8  # traces a batch
    samples: Positive = 256  # tokens that a one-token rollout draws at each place


class LearnerConfig(Section):
    """One optimizer and one loss.

    The defaults of `optimizer` and `lr` follow from what is learnt. A built model is reinforced at 5e-4, a pretrained
    one at 1e-6. A cold start has AdamW at 1e-4; of a built model Muon, at 0.02, with AdamW at 2e-3.

    The loss is SPO's (arXiv 2509.13232, Eq. 10). The optimizer's defaults are the project's own: betas (.9, .95), no
    weight decay, one step a batch; the authors' are (.9, .999), .01 and eight (`recipes/qwen3-8b-spo.toml` has them).
    """

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: on matrices; embeddings, head and norms stay with AdamW
    lr: Rate = 1e-6  # of AdamW; of a built model, and of a cold start: see above
    muon_lr: Rate = 0.02  # of the matrices, with optimizer = "muon"
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.95)  # of AdamW's moments
    weight_decay: Rate = 0.0  # of matrices and embeddings
    masters: Literal["float32", "bfloat16"] = "float32"  # what is trained; bfloat16 is rounded at random (torchao)
    moments: Literal["full", "8bit"] = "full"  # of AdamW: as large as the masters, or 8 bits each (torchao)
    # masters, moments and gradients in the CPU's memory, where the step is taken; on the GPU a copy in `dtype`
    offload_optimizer: bool = False
    grad_clip: Rate = 1.0  # largest gradient norm; 0: no limit
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of the learning rates, after the warm-up
    warmup_steps: Count = 0  # optimizer steps of linear growth
    total_steps: Count = 0  # optimizer steps until linear and cosine reach zero

    num_mini_batches: Positive = 1  # optimizer steps a batch ...
    epochs: Positive = 1  # ... and passes over it
    max_tokens_per_batch: Positive = 8192  # tokens of one packed micro-batch; a longer sequence goes alone
    logits_chunk: Positive = 4096  # action tokens whose logits exist at one time
    # of the computation (auto: bfloat16 on a GPU, else float32); what is trained and the optimizer stay float32
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False  # less memory, a third slower
    compile: bool = False  # fuse what lies between the matrix products; pays on a GPU, half a minute at the start
    lora: LoraConfig | None = None
    imitation: ImitationConfig | None = None  # demonstrations in the batches of reinforcement learning

    loss: str = "ppo_clip"  # its options: [loss.NAME]
    aggregation: Aggregation = "token_mean"  # how losses of tokens become the loss of a batch (docs/algorithms.md)
    length_norm: Positive = 1  # seq_mean_token_sum is divided by it (Dr. GRPO: the response limit)
    entropy_coef: float = 0.0  # times the entropy is subtracted from the loss
    # EPO: with entropy_coef, entropies outside these shares of the mean of earlier updates are drawn back; [0.8, 1.2]
    entropy_band: Bounds | None = None
    entropy_band_weight: Rate = 1.0  # of the distance to the band
    kl_coef: Rate = 0.0  # towards the reference: the weights at the start, or `set_reference`
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # all three have the gradient of the KL here

    # Truncated importance sampling: weight min(π_learner/π_sampler, cap), and π_old is the learner's policy at the
    # start of the batch. 0: π_old is the sampler's, and the clip of the loss bounds the distance to it.
    tis_cap: Rate = 0.0
    mask_outside: Bounds | None = None  # IcePop: a token weighs π_learner/π_sampler inside, nothing outside; [0.5, 5.0]
    reject_outside: Bounds | None = None  # geometric-mean π_learner/π_sampler of a whole trajectory
    # DeepSeek-V3.2: nats a token from which on a negative trajectory that became improbable is left alone; 0: never
    drop_negatives_beyond: Rate = 0.0
    drop_void: bool = False  # leave out trajectories with a void turn (SimpleTIR)
    drop_overlong: bool = False  # leave out those that the token limit ended

    @model_validator(mode="after")
    def _consistent(self) -> LearnerConfig:
        if self.schedule != "constant" and self.total_steps <= self.warmup_steps:
            remedy = "set it above warmup_steps" if self.total_steps else "set it, or cold_start.steps"
            raise ValueError(f"schedule = {self.schedule!r} ends at total_steps: {remedy}")
        if self.optimizer != "adamw" and (self.masters != "float32" or self.moments != "full"):
            raise ValueError('masters = "bfloat16" and moments = "8bit" are of AdamW: set optimizer = "adamw"')
        if self.masters == "bfloat16" and (self.lora or self.dtype == "float32"):
            raise ValueError(
                'masters = "bfloat16" is of weights trained whole and computed in bfloat16: no lora, no dtype'
            )
        if self.offload_optimizer and (self.lora or self.optimizer != "adamw"):
            why = "adapters have a small optimizer" if self.lora else "Muon's products are for a GPU"
            remedy = "leave it out" if self.lora else 'leave it out, or set optimizer = "adamw"'
            raise ValueError(f"offload_optimizer is for AdamW on all weights: {why}; {remedy}")
        if self.offload_optimizer and (self.masters != "float32" or self.moments != "full"):
            raise ValueError("offload_optimizer keeps masters and moments in float32: leave masters and moments out")
        registry.find("loss", self.loss)
        if self.entropy_band is not None and self.entropy_coef <= 0:
            raise ValueError("entropy_band smooths the entropy bonus: set entropy_coef above 0, for example 0.001")
        for name in ("mask_outside", "reject_outside", "entropy_band"):
            bounds = getattr(self, name)
            if bounds is not None and bounds[0] >= bounds[1]:
                raise ValueError(f"{name} must be [low, high] with low < high, not {list(bounds)}")
        return self

    @property
    def decoupled(self) -> bool:
        """π_old is the learner's own policy at the start of the batch; the sampler is corrected for by weights."""
        return self.tis_cap > 0 or self.mask_outside is not None or self.reject_outside is not None


def with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The sections `tree`, each learner with the defaults of its place under its own keys.

    They follow from the model, built or pretrained, not from which other keys a section has: one key changes that key
    alone.
    """
    cold, model = _given(tree.get("cold_start", {})), _given(tree.get("model", {}))
    built = not isinstance(model, Mapping) or model.get("path", "build") == "build"
    found = {**tree, "learner": _over(BUILT if built else PRETRAINED, tree.get("learner", {}))}
    if isinstance(cold, Mapping):
        learner = _over(IMITATED_BY_BUILT if built else IMITATED, cold.get("learner", {}))
        found["cold_start"] = {**cold, "learner": learner}
    return found


def _given(section: Any) -> Any:
    """What was said of it, of a section that is an object already, too."""
    return {name: getattr(section, name) for name in section.model_fields_set} if _made(section) else section


def _over(defaults: Mapping[str, Any], learner: Any) -> Any:
    if _made(learner):  # in Python: whole, as whoever made it can see
        return learner.model_dump()
    return {**defaults, **learner} if isinstance(learner, Mapping) else learner


def _made(section: Any) -> bool:
    return isinstance(section, BaseModel)
