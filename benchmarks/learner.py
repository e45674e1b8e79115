"""The learner's update on a length-skewed batch: packed, padded, and by TRL's GRPOTrainer, in one run.

All three do the same work: forward, PPO-clip with token mean, backward, clipping, AdamW, on one model, one batch, one
machine, float32, 8 sequences a micro-batch where they are padded. Tokens are real ones: padding does not count. The
rounds take turns, so that a busy machine slows all alike. The first line checks that the gradients agree.

    pip install trl
    python benchmarks/learner.py [--quick] [--plot learner.png]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from solostream.agent.trajectory import TokenRecord, Trajectory
from solostream.training.advantages.base import Advantages, per_token
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.learner import Learner

VOCABULARY, PROMPT, MICRO = 640, 32, 8


def model() -> Qwen3ForCausalLM:
    """The shape of the quickstart: half a million parameters."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=16,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def skewed(n: int, longest: int) -> list[Trajectory]:
    """Log-normal response lengths: median 64 tokens, the longest cut at `longest`."""
    rng = np.random.default_rng(0)
    scorer, batch = Learner(model(), LearnerConfig()), []
    lengths = np.minimum(np.exp(np.log(64) + 1.0 * rng.normal(size=n)).astype(int) + 4, longest)
    for i, length in enumerate(lengths):
        prompt, response = rng.integers(2, VOCABULARY, PROMPT).tolist(), rng.integers(2, VOCABULARY, length).tolist()
        logprobs = [0.0] * len(response)
        for _ in range(2):  # the second time with the policy's own log-probabilities
            ledger = TokenRecord()
            ledger.add_observation("user", prompt, "")
            ledger.add_action(response, logprobs, [0] * len(response), "")
            one = ledger.close(f"t{i}", float(i % 2), "answered")
            logprobs = scorer.logprobs([one])[0].tolist()
        batch.append(one)
    return batch


def padded(batch: list[Trajectory]) -> dict[str, torch.Tensor]:
    """Prompt and completion as TRL has them: every micro-batch as long as the batch's longest."""
    width = max(t.n_action_tokens for t in batch)
    completion, mask = torch.zeros(len(batch), width, dtype=torch.int64), torch.zeros(len(batch), width)
    for row, t in enumerate(batch):
        completion[row, : t.n_action_tokens] = torch.from_numpy(t.token_ids[PROMPT:])
        mask[row, : t.n_action_tokens] = 1
    prompts = torch.from_numpy(np.stack([t.token_ids[:PROMPT] for t in batch])).long()
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completion,
        "completion_mask": mask.long(),
    }


def padded_update(batch: list[Trajectory], advantages: list[float], trim: bool) -> tuple[Any, Callable[[], None]]:
    """A plain padded loop. `trim`: each micro-batch is cut to its own longest sequence."""
    policy = model()
    optimizer = torch.optim.AdamW(policy.parameters(), 1e-9, fused=True)
    columns, a = padded(batch), torch.tensor(advantages)
    total = columns["completion_mask"].sum()

    def update() -> None:
        optimizer.zero_grad()
        for start in range(0, len(batch), MICRO):
            part = {name: x[start : start + MICRO] for name, x in columns.items()}
            width = int(part["completion_mask"].sum(1).max()) if trim else part["completion_mask"].shape[1]
            targets, mask = part["completion_ids"][:, :width], part["completion_mask"][:, :width]
            ids = torch.cat([part["prompt_ids"], targets], 1)
            attend = torch.cat([part["prompt_mask"], mask], 1)
            logits = policy(input_ids=ids, attention_mask=attend, logits_to_keep=width + 1, use_cache=False).logits
            logprob = logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None])[..., 0]
            ratio, weight = (logprob - logprob.detach()).exp(), a[start : start + MICRO, None]
            loss = -torch.minimum(ratio * weight, ratio.clamp(0.8, 1.28) * weight)
            ((loss * mask).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    return policy, update


def trl_update(batch: list[Trajectory], advantages: list[float]) -> tuple[Any, Callable[[], None]]:
    """GRPOTrainer's own training steps over its own split of the batch; only the generation is replaced by ours."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"t{i}": i for i in range(2, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<pad>")), pad_token="<pad>", eos_token="<eos>"
    )
    micros = len(batch) // MICRO
    trainer = GRPOTrainer(
        model(),
        [lambda completions, **_: [0.0] * len(completions)],
        GRPOConfig(
            tempfile.mkdtemp(),
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=micros,
            num_generations=MICRO,
            beta=0.0,
            loss_type="dapo",
            epsilon_high=0.28,
            learning_rate=1e-9,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
        ),
        Dataset.from_dict({"prompt": ["t2"] * len(batch)}),
        processing_class=tokenizer,
    )
    columns = {**padded(batch), "advantages": torch.tensor(advantages)}
    columns["num_items_in_batch"] = columns["completion_mask"].sum()
    trainer._generate_and_score_completions = lambda _: dict(columns)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = micros
    policy: Any = trainer.model
    policy.train()

    def update() -> None:
        trainer.optimizer.zero_grad()
        for _ in range(micros):
            trainer.training_step(policy, {}, None)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        trainer.optimizer.step()

    return policy, update


def gradient(policy: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters()]).double()


def plot(path: str, speeds: dict[str, float]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    axes.barh(list(speeds)[::-1], list(speeds.values())[::-1])
    axes.set(xlabel="real tokens a second", title="One update of a length-skewed batch")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller batch, fewer rounds")
    parser.add_argument("--plot", help="write a bar chart here")
    options = parser.parse_args()
    n, longest, rounds = (32, 400, 3) if options.quick else (64, 800, 5)
    batch = skewed(n, longest)
    advantages = np.random.default_rng(1).normal(size=n).tolist()
    given = Advantages(per_token(advantages, batch))
    lengths = sorted(map(len, batch))
    print(f"{n} sequences, {sum(lengths)} tokens; length median {lengths[n // 2]}, longest {lengths[-1]}")

    learner = Learner(model(), LearnerConfig(lr=1e-9, betas=(0.9, 0.999), max_tokens_per_batch=2048))
    caught: list[torch.Tensor] = []
    apply = learner.optimizer.apply
    learner.optimizer.apply = lambda: (caught.append(gradient(learner.model)), apply())[1]  # type: ignore[method-assign]
    updates: dict[str, Callable[[], Any]] = {
        "solostream, packed": lambda: learner.update(batch, given, drift=False),
    }
    learner.update(batch, given, drift=False)
    learner.optimizer.apply = apply  # type: ignore[method-assign]
    peers = {
        "padded to the longest": lambda: padded_update(batch, advantages, False),
        "padded a micro-batch": lambda: padded_update(batch, advantages, True),
        "TRL GRPOTrainer": lambda: trl_update(batch, advantages),
    }
    for name, make in peers.items():
        try:
            policy, updates[name] = make()
        except ImportError as error:
            print(f"{name}: left out, {error}; pip install trl")
            continue
        updates[name]()
        agree = torch.cosine_similarity(caught[0], gradient(policy), 0)
        print(f"gradient of {name} against packed: cosine {agree:.6f}")

    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds):
        for name, update in updates.items():
            start = time.perf_counter()
            update()
            seconds[name].append(time.perf_counter() - start)
    ours = median(seconds["solostream, packed"])
    print(f"{'':<24}{'tokens/s':>10}{'seconds':>10}{'packed is':>12}")
    for name, measured in seconds.items():
        print(
            f"{name:<24}{sum(lengths) / median(measured):10.0f}{median(measured):10.2f}{median(measured) / ours:11.2f}x"
        )
    if options.plot:
        plot(options.plot, {name: sum(lengths) / median(measured) for name, measured in seconds.items()})
    print("bar: packed >= 2x TRL on a length-skewed batch")


if __name__ == "__main__":
    main()
