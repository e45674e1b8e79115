r"""The policy's weights and tokenizer: a small Qwen3 built from the config, or any Hugging Face id or local path.

The built tokenizer is a byte-level BPE with single digits (operands are copied digit by digit) and with the pieces of
the tool protocol (code fences, `\boxed{`) as single tokens. Its chat template is ChatML with a `tool` role.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from solostream import hub
from solostream.agent.chat_template import CHATML
from solostream.agent.engines import four_bit
from solostream.agent.engines.allocator import trim
from solostream.agent.engines.hf.device import straight_to
from solostream.agent.engines.hf.reading import read_model
from solostream.errors import UserError
from solostream.training.config import BuildConfig, ModelConfig
from solostream.training.learner.device import base_dtype, cast, device_of

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
PROTOCOL = ("```python\n", "\n```\n", "```output\n", "\\boxed{")


def build_tokenizer(corpus: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a BPE of at most `vocabulary` tokens on `corpus`, and on the words of the chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\d| ?[^\s\p{L}\d]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(PROTOCOL),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(itertools.chain(["system", "user", "assistant", "tool"] * 100, corpus), trainer)
    core.add_tokens(list(PROTOCOL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _qwen3(shape: BuildConfig, rows: int, **tokens: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=rows,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **tokens,
    )


def build_model(shape: BuildConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights; the vocabulary is padded to a multiple of 64 rows.

    Embeddings have the deviation 1/√hidden, so that logits of the tied head begin at variance 1. At transformers' .02
    little of what the second layer reads is which token it was, and some seeds learn to copy numbers twice as late.
    """
    config = _qwen3(
        shape,
        -(-len(tokenizer) // 64) * 64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(shape.hidden_size**-0.5 / config.initializer_range)
    return model


def load_tokenizer(config: ModelConfig, corpus: Iterable[str] = ()) -> Any:
    """What `config` names, or built of `corpus`. Raises UserError where it is not there or has no chat template."""
    if config.path == "build":
        return build_tokenizer(corpus, config.build.vocabulary)
    with _asked(config.path):
        tokenizer = AutoTokenizer.from_pretrained(config.path)
    refuse_no_template(config, tokenizer)
    return tokenizer


def tokenizer_here(config: ModelConfig, corpus: Iterable[str] = ()) -> Any:
    """As `load_tokenizer`, without asking a network; None where it is not on this machine."""
    if config.path == "build":
        return build_tokenizer(corpus, config.build.vocabulary)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.path, local_files_only=True)
    except (OSError, ValueError, TypeError):
        return None
    if tokenizer.vocab_size <= 1:  # what transformers makes of a folder that has a config.json alone
        return None
    refuse_no_template(config, tokenizer)
    return tokenizer


def load_model(
    config: ModelConfig,
    seed: int = 0,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapters: bool = False,
    shape_only: bool = False,
    on_host: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, on its device, and the tokenizer that `config` names.

    `seed` serves only a model that is built. tokenizer: where it is loaded already. adapters: see `load_weights`.
    shape_only: on torch's device "meta", without weights; what is built is always whole. on_host: in the CPU's memory,
    whatever the device.

    Raises UserError when the path is no model, or its tokenizer has no chat template.
    """
    device = torch.device("cpu") if on_host else device_of(config.device)
    tokenizer = load_tokenizer(config) if tokenizer is None else tokenizer  # before gigabytes are read
    if config.path == "build":
        fresh = build_model(config.build, tokenizer, seed).to(device)  # type: ignore[arg-type]
        cast(fresh, base_dtype(config, device) if adapters else torch.float32)
        return fresh, tokenizer
    if shape_only:
        return without_weights(config), tokenizer
    with _asked(config.path):
        return load_weights(config, config.path, device, adapters=adapters), tokenizer


def refuse_no_template(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError where neither the configuration nor the tokenizer has a chat template."""
    if tokenizer.chat_template is None and config.chat_template is None:
        raise UserError(
            f'the tokenizer of model.path = "{config.path}" has no chat template: set model.chat_template = "chatml" '
            "(or a Jinja file), or use an instruct model"
        )


def config_of(config: ModelConfig) -> Any:
    """The model's own configuration, of transformers. Raises UserError when the path is no model."""
    if config.path == "build":
        return _qwen3(config.build, config.build.vocabulary)
    with _asked(config.path):
        return AutoConfig.from_pretrained(config.path)


def without_weights(config: ModelConfig) -> PreTrainedModel:
    """The model's modules, on torch's device "meta". Raises UserError when the path is no model."""
    shape = config_of(config)
    with torch.device("meta"), _asked(config.path):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape)
    return model


def context_of(config: Any) -> int:
    """Tokens that a model with this configuration of transformers can read."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 20


@contextmanager
def _asked(path: str) -> Iterator[None]:
    """Around what reads a model, here or on the Hub. Raises UserError where there is none."""
    try:
        with hub.asked(path):
            yield
    except (OSError, ValueError) as error:
        raise UserError(f'model.path = "{path}": {hub.no_model(path, error)}') from error


def load_weights(config: ModelConfig, path: str, device: torch.device, *, adapters: bool) -> Any:
    """The model at `path`, on `device`; by way of the CPU without accelerate. adapters: its weights stay in
    `config.dtype`.

    What is trained is float32: a step of 1e-6 is lost on bfloat16 weights. Raises OSError and ValueError.
    """
    dtype = base_dtype(config, device) if adapters else torch.float32
    if not adapters or config.dtype != "4bit":
        model: Any = read_model(path, dtype=dtype, **straight_to(device))
        _writable_generation(model)
        return model.to(device)
    # Each tensor becomes small where it is wanted: the whole model never lies anywhere.
    quantization = four_bit.quantization()
    model = read_model(path, dtype=dtype, quantization_config=quantization, **straight_to(device))
    four_bit.settle(model)
    trim()
    _writable_generation(model)
    return model


def _writable_generation(model: Any) -> None:
    """Defaults of `generate` that transformers reads and will not write, as in folders of before it looked: a
    temperature without sampling means sampling; of others the token ids stay. No run of ours generates by them.
    """
    given = model.generation_config
    if given is None:
        return
    for tried in (given, {**given.to_diff_dict(), "do_sample": True}, _ids(given.to_diff_dict())):
        made = GenerationConfig.from_dict(tried) if isinstance(tried, dict) else tried
        try:
            made.validate(strict=True)
        except ValueError:
            continue
        model.generation_config = made
        return


def _ids(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.endswith("_token_id")}


def sampler_model(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A second copy: a model of the shape `config`, its weights and its configuration its own.

    transformers hands the configuration on as it is, and the learner switches the attention in its own one while it
    works: a sampler that shared it would run the learner's attention in the middle of a turn.
    """
    made: PreTrainedModel = AutoModelForCausalLM.from_config(four_bit.plain(config), dtype=dtype).to(device)
    return made
