"""Counting and cutting in tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from solostream.envs.text.budgets import ApproximateTokens, clip, token_counter
from solostream.errors import UserError

WORDS = st.text(st.characters(exclude_categories=["Cs"]))


class Characters:
    """One token a character."""

    def encode(self, text):
        return [ord(char) for char in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A folder with a small byte-level tokenizer, trained here."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the tokens of the text " * 20, "0123456789 tokens cut"], trainer)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@given(WORDS)
def test_the_approximation_loses_nothing(text):
    counter = ApproximateTokens()
    ids = counter.encode(text)
    assert len(ids) == -(-len(text) // 3)
    assert counter.decode(ids) == text


def test_clip_keeps_head_and_tail():
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    marker = "\n[… 933 tokens cut …]\n"
    assert clip(text, 1000, Characters()) == text
    short = clip(text, 90, Characters())
    assert short == text[:34] + marker + text[-33:]  # 89: the marker was measured with the larger number


def test_clip_without_room_for_the_marker_keeps_the_head():
    assert clip("a" * 50, 10, Characters()) == "a" * 10


@settings(max_examples=200, deadline=None)
@given(text=WORDS.map(lambda s: s * 20), cap=st.integers(1, 80))
def test_the_marker_is_inside_the_cap(bpe, text, cap):
    for counter in (Characters(), ApproximateTokens(), token_counter(str(bpe))):
        assert len(counter.encode(clip(text, cap, counter))) <= cap or counter.decode(counter.encode(text)) != text


def test_named_and_made_counters(bpe):
    assert token_counter(str(bpe)).encode("the tokens") == token_counter(str(bpe / "tokenizer.json")).encode(
        "the tokens"
    )
    assert token_counter(str(bpe)).decode(token_counter(str(bpe)).encode("12 é")) == "12 é"
    assert token_counter(Characters).encode("ab") == [97, 98]
    assert token_counter(None).encode("abcd") == ApproximateTokens().encode("abcd")
    with pytest.raises(UserError, match=r"folder with tokenizer\.json"):
        token_counter("/nowhere/tokenizer.json")


def test_a_tokenizer_with_special_tokens_counts_only_the_text(bpe):
    """Llama's adds a first token of its own to whatever it encodes: it must neither count nor show."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(bpe / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>"])
    start = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=start)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    assert fast.decode(fast.encode("the text")) == "<s>the text"
    counter = token_counter(fast)
    assert counter.decode(counter.encode("the text")) == "the text"
    assert "<s>" not in clip("0123456789" * 50, 60, counter)
