"""The short way to a tokenizer gives what transformers' own gives."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from solostream.agent.engines.scripted import byte_tokenizer
from solostream.agent.tokenization import decode, encode

TEXTS = ("", " a  b .\n", "<|im_start|>user\nnaïve 数<|im_end|>", "x ,y !", "\ufffd")


def metaspace() -> Any:
    """A tokenizer of the SentencePiece kind, whose first space is not shown, with special tokens at both ends."""
    pieces = {"<s>": 0, "</s>": 1, "<unk>": 2, "▁": 3} | {c: i for i, c in enumerate("ab.xyui,!\n", 4)}
    core = Tokenizer(models.BPE(pieces, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def truncated() -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(2)
    return tokenizer


def splitting() -> Any:
    tokenizer = truncated()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.split_special_tokens = True
    return tokenizer


class Shouting(PreTrainedTokenizerFast):
    """One that does more than the tokenizer inside it."""

    def _decode(self, *args: Any, **options: Any) -> str:
        return super()._decode(*args, **options).upper()


@pytest.mark.parametrize("make", [byte_tokenizer, metaspace, truncated, splitting])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(make: Any, text: str) -> None:
    # transformers changes the tokenizer inside as it goes: ask two that are alike
    ids = make().encode(text, add_special_tokens=False)
    assert encode(make(), text) == ids
    expected = make().decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert decode(make(), ids) == expected


def test_a_class_that_decodes_otherwise_is_asked() -> None:
    tokenizer = Shouting(tokenizer_object=byte_tokenizer().backend_tokenizer)
    assert decode(tokenizer, encode(tokenizer, "loud")) == "LOUD"
