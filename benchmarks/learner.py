"""The learner's update on a length-skewed batch: packed, padded, sorted and padded, and by TRL, in one run.

All do the same work: forward, PPO-clip with token mean, backward, clipping, AdamW, on one model, one batch, one
machine, float32, 8 sequences a micro-batch where they are padded ("sorted": neighbours in length share one, cut to its
longest). Tokens are real ones: padding does not count. The rounds take turns and count CPU seconds, so that a busy
machine favours nobody. The first lines say which model and batch, and check that the gradients agree. --compile adds
the packed learner with `learner.compile`, and says what compiling took (it needs a C++ compiler, and a minute or two).

    pip install trl
    python benchmarks/learner.py [--model 0.5M|25M|135M] [--peers longest micro-batch sorted trl] [--compile] [--quick]
        [--rounds N] [--plot learner.png]

Each has a model and an optimizer of its own: at 135M all of them take 20 GB, packed, sorted and TRL 11.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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

PROMPT, MICRO = 32, 8
OURS, COMPILED = "solostream, packed", "packed and compiled"
PEERS = {
    "longest": "padded to the longest",
    "micro-batch": "padded a micro-batch",
    "sorted": "padded, sorted by length",
    "trl": "TRL GRPOTrainer",
}
# name -> what it is, vocabulary, hidden size, MLP, layers, heads, heads of keys and values, head size
SHAPES = {
    "0.5M": ("the quickstart's shape", 640, 128, 384, 2, 8, 4, 16),
    "25M": ("six layers of 512", 8192, 512, 1728, 6, 8, 4, 64),
    "135M": ("SmolLM2-135M's sizes", 49_152, 576, 1536, 30, 9, 3, 64),
}


def model(name: str) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights and tied embeddings."""
    torch.manual_seed(0)
    _, vocabulary, hidden, mlp, layers, heads, kv_heads, head_dim = SHAPES[name]
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def skewed(name: str, n: int, longest: int) -> list[Trajectory]:
    """Log-normal response lengths: median 64 tokens, the longest cut at `longest`; log-probabilities the policy's."""
    rng, vocabulary = np.random.default_rng(0), SHAPES[name][1]
    lengths = np.minimum(np.exp(np.log(64) + 1.0 * rng.normal(size=n)).astype(int) + 4, longest)
    texts = [(rng.integers(2, vocabulary, PROMPT).tolist(), rng.integers(2, vocabulary, k).tolist()) for k in lengths]

    def closed(logprobs: list[Any]) -> list[Trajectory]:
        made = []
        for i, ((prompt, response), of_tokens) in enumerate(zip(texts, logprobs, strict=True)):
            ledger = TokenRecord()
            ledger.add_observation("user", prompt, "")
            ledger.add_action(response, of_tokens, [0] * len(response), "")
            made.append(ledger.close(f"t{i}", float(i % 2), "answered"))
        return made

    unscored = closed([[0.0] * len(response) for _, response in texts])
    scorer = Learner(model(name), LearnerConfig(max_tokens_per_batch=2048))
    return closed([one.tolist() for one in scorer.logprobs(unscored)])


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


def padded_update(
    policy: Qwen3ForCausalLM, batch: list[Trajectory], advantages: list[float], trim: bool, in_order: bool = False
) -> tuple[Any, Callable[[], None]]:
    """A plain padded loop. trim: each micro-batch is cut to its own longest sequence. in_order: sorted by length."""
    if in_order:
        order = sorted(range(len(batch)), key=lambda i: batch[i].n_action_tokens)
        batch, advantages = [batch[i] for i in order], [advantages[i] for i in order]
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


def trl_update(
    policy: Qwen3ForCausalLM, batch: list[Trajectory], advantages: list[float]
) -> tuple[Any, Callable[[], None]]:
    """GRPOTrainer's own training steps over its own split of the batch; only the generation is replaced by ours."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"t{i}": i for i in range(2, policy.config.vocab_size)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<pad>")), pad_token="<pad>", eos_token="<eos>"
    )
    micros = len(batch) // MICRO
    trainer = GRPOTrainer(
        policy,
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
    trained: Any = trainer.model
    trained.train()

    def update() -> None:
        trainer.optimizer.zero_grad()
        for _ in range(micros):
            trainer.training_step(trained, {}, None)
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        trainer.optimizer.step()

    return trained, update


def gradient(policy: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters()]).double()


def plot(path: str, speeds: dict[str, float]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    axes.barh(list(speeds)[::-1], list(speeds.values())[::-1])
    axes.set(xlabel="real tokens a CPU second", title="One update of a length-skewed batch")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def packed_update(
    name: str, batch: list[Trajectory], advantages: list[float], compiled: bool, caught: list[torch.Tensor]
) -> Callable[[], Any]:
    """The learner's own, once done: its gradient is appended to `caught`, for the step drops it."""
    given = Advantages(per_token(advantages, batch))
    config = LearnerConfig(lr=1e-9, betas=(0.9, 0.999), max_tokens_per_batch=2048, compile=compiled)
    learner = Learner(model(name), config)
    apply = learner.optimizer.apply
    learner.optimizer.apply = lambda: (caught.append(gradient(learner.model)), apply())[1]  # type: ignore[method-assign]
    learner.update(batch, given, drift=False)
    learner.optimizer.apply = apply  # type: ignore[method-assign]
    return lambda: learner.update(batch, given, drift=False)


def cpu_s() -> float:
    """CPU seconds of this process and of the compilers that it started."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def contestants(
    name: str, batch: list[Trajectory], advantages: list[float], compiled: bool, peers: Sequence[str]
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Name -> one update; name -> how near its gradient is to the packed one (cosine). Each has done one."""
    caught: list[torch.Tensor] = []
    updates = {OURS: packed_update(name, batch, advantages, False, caught)}
    if compiled:
        before, wall = cpu_s(), time.monotonic()
        updates[COMPILED] = packed_update(name, batch, advantages, True, caught)
        print(f"compiling and the first update: {cpu_s() - before:.0f} CPU s, {time.monotonic() - wall:.0f} s")
    agree = {COMPILED: float(torch.cosine_similarity(caught[0], caught[1], 0))} if compiled else {}
    for short in peers:
        peer, policy = PEERS[short], model(name)
        try:
            if short == "trl":
                policy, updates[peer] = trl_update(policy, batch, advantages)
            else:
                trim, in_order = short != "longest", short == "sorted"
                policy, updates[peer] = padded_update(policy, batch, advantages, trim, in_order)
        except ImportError as error:
            print(f"{peer}: left out, {error}; pip install trl")
            continue
        updates[peer]()
        agree[peer] = float(torch.cosine_similarity(caught[0], gradient(policy), 0))
    return updates, agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="0.5M")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--compile", action="store_true", help="also with learner.compile")
    parser.add_argument("--quick", action="store_true", help="a smaller batch, fewer rounds")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 2")
    parser.add_argument("--plot", help="write a bar chart here")
    options = parser.parse_args()
    n, longest, rounds = (32, 400, 2) if options.quick else (64, 800, 5)
    batch = skewed(options.model, n, longest)
    advantages = np.random.default_rng(1).normal(size=n).tolist()
    lengths = sorted(map(len, batch))
    parameters = model(options.model).num_parameters() / 1e6
    print(f"model {options.model}: {SHAPES[options.model][0]}, {parameters:.1f} M parameters, random weights")
    print(f"batch: {n} sequences, {sum(lengths)} tokens; length median {lengths[n // 2]}, longest {lengths[-1]}")
    widest = sum(
        max(lengths[start : start + MICRO]) * len(lengths[start : start + MICRO]) for start in range(0, n, MICRO)
    )
    print(
        f"padding: {n * lengths[-1] / sum(lengths):.2f}x the tokens to the longest, {widest / sum(lengths):.2f}x sorted"
    )

    updates, agree = contestants(options.model, batch, advantages, options.compile, options.peers)
    for name, cosine in agree.items():
        print(f"gradient of {name} against packed: cosine {cosine:.6f}")
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(options.rounds or rounds):
        for name, update in updates.items():
            start = time.process_time()
            update()
            seconds[name].append(time.process_time() - start)
    ours = median(seconds[OURS])
    print(f"{'':<26}{'tokens a CPU s':>15}{'CPU seconds':>13}{'packed is':>12}")
    for name, measured in seconds.items():
        spent = median(measured)
        print(f"{name:<26}{sum(lengths) / spent:15.0f}{spent:13.2f}{spent / ours:11.2f}x")
    if options.plot:
        plot(options.plot, {name: sum(lengths) / median(measured) for name, measured in seconds.items()})
    print("bars: packed >= 3x TRL and >= 1.5x padded and sorted, at 25M and 135M")


if __name__ == "__main__":
    main()
