"""A model of 0.1 M parameters that calls tools in Hermes' form, made in a CPU minute: for servers that parse calls.

It learns some multiplications by heart: a call that computes, then the answer that the tool gave. Stopped early, so
that it is right in some of its samples and not in others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>"
    "{% for tool in tools %}{{ tool['function']['name'] }}"
    "({% for name in tool['function']['parameters']['properties'] %}{{ name }}{% endfor %}) {% endfor %}"
    "</tools><|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %}{% if m['content'] or not loop.first %}\n{% endif %}"
    '<tool_call>\n{"name": {{ call["function"]["name"] | tojson }}, "arguments": '
    '{{ call["function"]["arguments"] | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIRS = [(a, b) for a in (6, 7, 12, 31) for b in (3, 8, 15, 24)]
STEPS = 115


def problems(path: Path) -> Path:
    """A JSONL file of what the model has learnt."""
    rows = [{"id": f"{a}x{b}", "prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def build(folder: Path, *, steps: int = STEPS) -> Path:
    """Train it and save model and tokenizer where transformers and vLLM load them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    episodes = [_episode(a, b) for a, b in PAIRS]
    tokenizer = _tokenizer(["".join(text for text, _ in episode) for episode in episodes])
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=128, max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    ids, targets = _batch(tokenizer, episodes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 10)
        optimizer.zero_grad()
        model(input_ids=ids, labels=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _episode(a: int, b: int) -> list[tuple[str, bool]]:
    """(text, whether the model says it), as the template renders it."""
    call = json.dumps({"name": "python", "arguments": {"code": f"print({a} * {b})"}})
    return [
        ("<|im_start|>system\n<tools>python(code) </tools><|im_end|>\n", False),
        (f"<|im_start|>user\nWhat is {a} * {b}?<|im_end|>\n<|im_start|>assistant\n", False),
        (f"<tool_call>\n{call}\n</tool_call><|im_end|>", True),
        (f"\n<|im_start|>tool\n{a * b}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"So it is \\boxed{{{a * b}}}.<|im_end|>", True),
    ]  # fmt: skip


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=specials[:1],
        chat_template=TEMPLATE,
    )


def _batch(tokenizer: Any, episodes: list[list[tuple[str, bool]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(episodes, longest) ids, and targets that are -100 where the model does not speak."""
    rows, marks = [], []
    for episode in episodes:
        parts = [(tokenizer.encode(text, add_special_tokens=False), said) for text, said in episode]
        rows.append([token for part, _ in parts for token in part])
        marks.append([said for part, said in parts for _ in part])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.eos_token_id] * (longest - len(row)) for row in rows])
    said = torch.tensor([mark + [False] * (longest - len(mark)) for mark in marks])
    return ids, ids.masked_fill(~said, -100)
