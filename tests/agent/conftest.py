"""A tokenizer and models small enough to compute references with, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from solostream.agent.chat_template import CHATML

CORPUS = ["def add(a, b):\n    return a + b\n```python\nprint(add(1, 2))\n```\nThe answer is \\boxed{3}. naïve 数"] * 3
FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """`make_model(family, seed)`: sharp, so that greedy tokens do not hang on rounding; no gain is trivial."""

    def make(family: str = "qwen3", seed: int = 0, **options: Any) -> Any:
        torch.manual_seed(seed)
        config, model = FAMILIES[family]
        sizes = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 512,
            "tie_word_embeddings": family == "qwen3",
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "pad_token_id": None,
        }
        if family != "qwen2":
            sizes["head_dim"] = 16
        made = model(config(**{**sizes, **options})).eval()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif "bias" in name:
                    parameter.normal_(std=0.5)
                else:
                    parameter.mul_(4)
        return made

    return make


@torch.no_grad()
def logprobs_of(model: Any, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """(len(ids), vocabulary): row i is the distribution of token i + 1, by the model's own forward over everything."""
    return (model(torch.tensor([ids])).logits[0].float() / temperature).log_softmax(-1)


def greedy(model: Any, prompt: list[int], n: int, stop: int) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + n and (len(ids) == len(prompt) or ids[-1] != stop):
        ids.append(int(logprobs_of(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="session")
def reference() -> tuple[Callable[..., torch.Tensor], Callable[..., list[int]]]:
    """(`logprobs_of`, `greedy`)."""
    return logprobs_of, greedy
