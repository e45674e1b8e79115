"""One gradient, however the batch is cut: packed, padded, in micro-batches, in chunks, recomputed."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from tiny_ledgers import trajectory

from solostream import registry
from solostream.agent.trajectory import Trajectory
from solostream.training.advantages.base import Advantages
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.learner import Learner
from solostream.training.losses import Loss

AGGREGATIONS = ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum"]
LENGTHS = [3, 21, 8, 8, 1, 34, 13, 5, 27, 2, 9, 16]


def a_batch(
    model: torch.nn.Module, noise: float = 0.25, seed: int = 0, **fields
) -> tuple[list[Trajectory], Advantages]:
    """Sampler's log-probabilities are the model's own plus noise, so that some ratios are clipped.

    Every token has an advantage of its own.
    """
    rng = np.random.default_rng(seed)
    batch = []
    for i, length in enumerate(LENGTHS):
        prompt, response = rng.integers(0, 64, int(rng.integers(1, 12))), rng.integers(0, 64, length)
        ids = torch.from_numpy(np.concatenate([prompt, response]))[None]
        with torch.no_grad():
            every = model(input_ids=ids).logits[0].log_softmax(-1)
        own = every[torch.arange(len(prompt) - 1, ids.shape[1] - 1), torch.from_numpy(response)].numpy()
        logprobs = own + noise * rng.normal(size=length)
        batch.append(
            trajectory(f"t{i}", 1.0, prompt=prompt.tolist(), response=response.tolist(), logprobs=logprobs, **fields)
        )
    return batch, Advantages([rng.normal(size=t.n_action_tokens) for t in batch])


def gradient(
    config: LearnerConfig, batch: list[Trajectory], advantages: Advantages, loss: Loss | None = None
) -> torch.Tensor:
    """The gradient of a single update, caught before the optimizer step."""
    learner = Learner(tiny_models.model(), config, loss=loss)
    found: list[torch.Tensor] = []
    learner.optimizer.apply = lambda: found.append(  # type: ignore[method-assign]
        torch.cat([p.grad.flatten() for p in learner.optimizer.parameters])
    )
    learner.update(batch, advantages)
    return found[0]


def padded_gradient(batch: list[Trajectory], advantages: Advantages, aggregation: str) -> torch.Tensor:
    """The textbook: one right-padded batch, full logits, PPO-clip and the aggregation written out densely."""
    model = tiny_models.model()
    longest = max(map(len, batch))
    ids, attend, act = (torch.zeros(len(batch), longest, dtype=torch.int64) for _ in range(3))
    old, a = torch.zeros(len(batch), longest), torch.zeros(len(batch), longest)
    for row, t in enumerate(batch):
        ids[row, : len(t)] = torch.from_numpy(t.token_ids)
        attend[row, : len(t)] = 1
        act[row, : len(t)] = torch.from_numpy(t.action_mask)
        old[row, : len(t)] = torch.from_numpy(np.nan_to_num(t.logprobs))
        a[row, : len(t)][torch.from_numpy(t.action_mask)] = torch.from_numpy(advantages.values[row]).float()
    logits = model(input_ids=ids, attention_mask=attend).logits
    logprob = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    act, old, a = act[:, 1:], old[:, 1:], a[:, 1:]
    ratio = (logprob - old).exp()
    loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a) * act
    if aggregation == "token_mean":
        total = loss.sum() / act.sum()
    elif aggregation == "seq_mean_token_mean":
        total = (loss.sum(1) / act.sum(1)).mean()
    else:
        total = loss.sum(1).mean()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def close(one: torch.Tensor, two: torch.Tensor) -> bool:
    return bool((one - two).abs().max() <= 1e-5 * max(1.0, float(two.abs().max())))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_packed_padded_and_micro_batched_gradients_are_equal(aggregation) -> None:
    batch, advantages = a_batch(tiny_models.model())
    expected = padded_gradient(batch, advantages, aggregation)
    assert expected.abs().max() > 1e-3
    total = sum(map(len, batch))
    for ways in (1, 2, 4, 8):
        config = LearnerConfig(aggregation=aggregation, grad_clip=0, max_tokens_per_batch=-(-total // ways) + 1)
        assert close(gradient(config, batch, advantages), expected), ways
    alone = LearnerConfig(aggregation=aggregation, grad_clip=0, max_tokens_per_batch=1)
    assert close(gradient(alone, batch, advantages), expected)


@pytest.mark.parametrize("loss", ["ppo_clip", "cispo", "gspo", "clip_cov", "kl_cov", "dppo", "dcpo"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_loss_is_independent_of_the_cut(loss, aggregation) -> None:
    """Entropy bonus, KL to a reference, TIS and sequence rejection on, too."""
    batch, advantages = a_batch(tiny_models.model())
    config = LearnerConfig(
        loss=loss,
        aggregation=aggregation,
        grad_clip=0,
        entropy_coef=0.05,
        kl_coef=0.1,
        tis_cap=1.1,
        reject_outside=(0.9, 1.15),
        mask_outside=(0.7, 1.6),
        drop_negatives_beyond=0.02,
    )
    options = {"clip_cov": {"share": 0.2, "bounds": (0.0, 5.0)}, "kl_cov": {"share": 0.2}}
    made = registry.make("loss", loss, options.get(loss, {}))
    whole = gradient(config, batch, advantages, made)
    cut = config.model_copy(update={"max_tokens_per_batch": 40, "logits_chunk": 6, "gradient_checkpointing": True})
    assert whole.abs().max() > 1e-4
    assert close(gradient(cut, batch, advantages, made), whole)
    assert close(gradient(config, batch[::-1], Advantages(advantages.values[::-1]), made), whole) or loss == "clip_cov"


def test_a_filtered_trajectory_does_not_reweigh_the_others() -> None:
    """Denominators are fixed before filtering: dropping one equals giving it the advantage 0."""
    batch, advantages = a_batch(tiny_models.model())
    void, _ = a_batch(tiny_models.model(), void=True)
    mixed = [void[0], *batch[1:5], void[5], *batch[6:]]
    zeroed = Advantages([a * (i not in (0, 5)) for i, a in enumerate(advantages.values)])
    for aggregation in AGGREGATIONS:
        config = LearnerConfig(aggregation=aggregation, grad_clip=0)
        dropping = config.model_copy(update={"drop_void": True})
        assert close(gradient(dropping, mixed, advantages), gradient(config, batch, zeroed))


def test_gradient_clipping_scales() -> None:
    batch, advantages = a_batch(tiny_models.model())
    free = gradient(LearnerConfig(grad_clip=0), batch, advantages)
    clipped = gradient(LearnerConfig(grad_clip=1e-3), batch, advantages)
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-3)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-4)


def test_bfloat16_points_the_same_way() -> None:
    batch, advantages = a_batch(tiny_models.model(), noise=0.01)
    whole = gradient(LearnerConfig(grad_clip=0), batch, advantages)
    half = gradient(LearnerConfig(grad_clip=0, dtype="bfloat16"), batch, advantages)
    assert half.dtype == torch.float32
    assert float(torch.cosine_similarity(whole, half, 0)) > 0.98
