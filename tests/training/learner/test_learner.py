"""The learner as the trainer uses it: metrics by hand, state, weights, cold start, and input that must stop it."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import tiny_models
import torch
from pydantic import ValidationError
from tiny_ledgers import constant, trajectory

from solostream.agent.trajectory import Trajectory
from solostream.errors import UserError
from solostream.training.advantages.base import Advantages
from solostream.training.config.learner import LearnerConfig, LoraConfig
from solostream.training.learner.corrections import token_corrections
from solostream.training.learner.learner import Learner
from solostream.training.learner.optimizer import factor
from solostream.training.learner.optimizer.muon import orthogonalise
from solostream.training.learner.supervised import sft_step
from solostream.training.losses.aggregation import token_weights
from solostream.training.losses.tokens import Tokens
from solostream.training.run import checkpoint


def learner(seed: int = 0, **settings) -> Learner:
    return Learner(tiny_models.model(seed=seed), LearnerConfig(**{"lr": 1e-3, **settings}))


def on_policy(by: Learner, n: int = 8, shift: float = 0.0, seed: int = 0, **fields) -> list[Trajectory]:
    """Random responses whose log-probabilities are `by`'s own, less `shift`."""
    rng = np.random.default_rng(seed)
    blank = [
        trajectory(
            f"t{i}",
            float(i % 2),
            prompt=rng.integers(0, 64, 4).tolist(),
            response=rng.integers(0, 64, int(rng.integers(3, 20))).tolist(),
            **fields,
        )
        for i in range(n)
    ]
    scored = by.logprobs(blank)
    return [
        trajectory(
            t.task_id,
            t.reward,
            prompt=t.token_ids[:4].tolist(),
            response=t.token_ids[4:].tolist(),
            logprobs=lp - shift,
            **fields,
        )
        for t, lp in zip(blank, scored, strict=True)
    ]


def signs(batch: list[Trajectory]) -> Advantages:
    return constant(*(1.0 if i % 2 else -1.0 for i in range(len(batch))), batch=batch)


def test_update_makes_rewarded_answers_likelier() -> None:
    one = learner()
    batch = on_policy(one)
    for _ in range(5):
        one.update(batch, signs(batch))
    change = [float((a - t.logprobs[t.action_mask]).mean()) for a, t in zip(one.logprobs(batch), batch, strict=True)]
    assert np.mean(change[1::2]) > 0.05 > -0.05 > np.mean(change[::2])


def test_entropies_are_those_of_the_models_own_distribution() -> None:
    """Against a plain forward pass of each sequence alone, at the sampler's temperature."""
    one = Learner(tiny_models.model(seed=2), LearnerConfig(max_tokens_per_batch=40), temperature=0.7)
    batch = on_policy(one, seed=5)
    with torch.no_grad():
        for trajectory_, got in zip(batch, one.entropies(batch), strict=True):
            logits = one.model(input_ids=torch.from_numpy(trajectory_.token_ids).long()[None]).logits[0, :-1]
            every = (logits.double() / 0.7).log_softmax(-1)
            entropy = -(every.exp() * every).sum(-1)[trajectory_.action_mask[1:]]
            assert got == pytest.approx(entropy.numpy(), abs=1e-4)


def test_metrics_on_policy_are_exactly_quiet() -> None:
    one = learner()
    batch = on_policy(one, version=3)
    got = one.update(batch, signs(batch), version=3)
    assert got["mismatch/max"] == got["mismatch/on_policy_max"] < 1e-5
    assert got["mismatch/ess"] == pytest.approx(1)
    assert got["clip/low"] == got["clip/high"] == got["clip/dual"] == 0
    assert abs(got["kl/k1"]) < 1e-5
    assert got["optimizer_steps"] == one.step == 1
    assert got["drift"] > 0


def test_drift_is_the_mean_change_of_all_action_tokens() -> None:
    """Also of trajectories that are longer than any budget of tokens; and no forward pass where nobody asks."""
    one = learner(lr=3e-3)
    rng = np.random.default_rng(4)
    batch = [trajectory(f"t{n}", n % 2, response=rng.integers(2, 60, n).tolist()) for n in (1300, 5, 211)]
    before = np.concatenate(one.logprobs(batch)).astype(float)
    got = one.update(batch, signs(batch))
    change = np.abs(np.concatenate(one.logprobs(batch)) - before)
    assert got["drift"] == pytest.approx(float(change.mean()), rel=1e-5)
    assert float(change.mean()) > 1e-3
    assert "drift" not in one.update(batch, signs(batch), drift=False)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_mini_batches": 3, "epochs": 2}, {"aggregation": "seq_mean_token_mean"}, {"max_tokens_per_batch": 40}],
)
def test_the_loss_that_is_logged_is_what_the_steps_minimised(settings: dict) -> None:
    """On the policy that sampled the ratio is 1: −A where all have one A, over however many packs and steps."""
    one = learner(lr=1e-9, **settings)
    batch = on_policy(one)
    alike = constant(*[0.7] * len(batch), batch=batch)
    assert one.update(batch, alike)["loss"] == pytest.approx(-0.7, abs=1e-4)
    lengths = [t.n_action_tokens for t in batch]
    of_each = [0.3, -0.2, 0.9, -1.1, 0.4, 0.0, -0.6, 0.25]
    if not settings:
        mean = sum(a * n for a, n in zip(of_each, lengths, strict=True)) / sum(lengths)
        assert one.update(batch, constant(*of_each, batch=batch))["loss"] == pytest.approx(-mean, abs=1e-4)


def test_metrics_of_a_shifted_sampler_by_hand() -> None:
    """Every token 0.3 nats likelier under the learner: ratio 1.35 > 1.28, clipped where A > 0."""
    one = learner()
    batch = on_policy(one, shift=0.3, version=1)
    got = one.update(batch, signs(batch), version=2)
    tokens = [t.n_action_tokens for t in batch]
    assert got["clip/high"] == pytest.approx(sum(tokens[1::2]) / sum(tokens), abs=1e-6)
    assert got["clip/low"] == 0
    assert got["kl/k1"] == pytest.approx(-0.3, abs=1e-4)  # of KL(old ‖ new) on tokens the new policy likes more
    assert got["kl/k2"] == pytest.approx(0.045, abs=1e-4)
    assert got["kl/k3"] == pytest.approx(math.exp(0.3) - 1 - 0.3, abs=1e-4)
    assert got["mismatch/kl"] == pytest.approx(got["kl/k3"], rel=1e-4)
    assert got["mismatch/max"] == pytest.approx(0.3, abs=1e-4)
    assert "mismatch/on_policy_max" not in got


def test_effective_sample_size_by_hand() -> None:
    """Two tokens with weights 1 and 3: (1 + 3)²/(2·(1 + 9)) = 0.8."""
    one = learner()
    lp = one.logprobs([trajectory("a", response=[4, 5])])[0]
    batch = [trajectory("a", response=[4, 5], logprobs=[lp[0], lp[1] - math.log(3)])]
    assert one.update(batch, constant(1.0, batch=batch))["mismatch/ess"] == pytest.approx(0.8, rel=1e-4)


def test_decoupled_ratio_starts_at_one_and_the_mismatch_is_capped() -> None:
    one = learner(tis_cap=1.2)
    batch = on_policy(one, shift=0.3)
    got = one.update(batch, signs(batch))
    assert got["clip/high"] == got["clip/low"] == 0
    assert got["tis/weight"] == pytest.approx(1.2, rel=1e-5)
    assert got["tis/clipped"] == 1
    assert got["mismatch/max"] == pytest.approx(0.3, abs=1e-4)


def test_importance_weights_by_hand() -> None:
    """Trajectory 0: ratios 2 and 0.5, geometric mean 1, kept; 1: ratio 4, rejected. TIS caps 2 at 1.5."""
    config = LearnerConfig(tis_cap=1.5, reject_outside=(0.5, 2.0))
    weight, metrics = token_corrections(ratios([2.0, 0.5, 4.0], [0, 0, 1]), torch.zeros(3), config)
    assert weight.tolist() == pytest.approx([1.5, 0.5, 0.0])
    assert int(metrics["tis/clipped"]) == 2
    assert int(metrics["tis/rejected"]) == 1


def test_a_two_sided_mask_lets_a_token_weigh_its_ratio_or_nothing() -> None:
    """IcePop's [0.5, 5] on ratios 0.4, 0.7, 4.5 and 5.5; a cap of 3 on what it leaves, and none by default."""
    tokens = ratios([0.4, 0.7, 4.5, 5.5], [0, 1, 2, 3])
    weight, metrics = token_corrections(tokens, torch.zeros(4), LearnerConfig(mask_outside=(0.5, 5.0)))
    assert weight.tolist() == pytest.approx([0.0, 0.7, 4.5, 0.0])
    assert int(metrics["mask/sampler"]) == 2
    capped = token_corrections(tokens, torch.zeros(4), LearnerConfig(mask_outside=(0.5, 5.0), tis_cap=3.0))
    assert capped[0].tolist() == pytest.approx([0.0, 0.7, 3.0, 0.0])
    assert int(capped[1]["tis/clipped"]) == 1
    assert token_corrections(tokens, torch.zeros(4), LearnerConfig()) == (None, {})


def test_negatives_that_became_improbable_are_left_alone() -> None:
    """Mean log(sampler/policy) of three sequences: 0.3, 0.3 and 0.1, against δ = 0.2; only negative tokens go."""
    logprob = torch.tensor([-1.5, -1.1, -1.3, -1.1])  # the sampler's were all -1
    advantage = torch.tensor([-1.0, -1.0, 2.0, -1.0])
    tokens = Tokens(logprob, logprob, advantage, torch.tensor([0, 0, 1, 2]), 3, torch.zeros(4) > 0)
    weight, metrics = token_corrections(tokens, -torch.ones(4), LearnerConfig(drop_negatives_beyond=0.2))
    assert weight.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert int(metrics["mask/negatives"]) == 2


def ratios(of: list[float], segment: list[int]) -> Tokens:
    """Tokens whose π_old is so many times the sampler's, whose log-probabilities are 0."""
    old, n = torch.tensor(of).log(), len(of)
    return Tokens(old, old, torch.ones(n), torch.tensor(segment), max(segment) + 1, torch.zeros(n) > 0)


def test_aggregation_weights_by_hand() -> None:
    assert token_weights("token_mean", [1, 3]) == [0.25, 0.25]
    assert token_weights("seq_mean_token_mean", [1, 3]) == [0.5, 1 / 6]
    assert token_weights("seq_mean_token_sum", [1, 3], 10) == [0.05, 0.05]


def test_filters_are_counted_by_their_first_cause() -> None:
    one = learner(drop_void=True, drop_overlong=True)
    batch = [
        *on_policy(one, 2),
        trajectory("void", void=True, ending="token_limit"),
        trajectory("long", ending="token_limit"),
        trajectory("empty", response=[]),
    ]
    got = one.update(batch, signs(batch))
    assert [got[f"dropped/{name}"] for name in ("void", "overlong", "empty")] == [1, 1, 1]
    assert got["tokens"] == sum(map(len, batch[:2]))


def test_a_batch_of_which_nothing_is_left_takes_no_step() -> None:
    one = learner(drop_void=True)
    batch = [trajectory("void", void=True)]
    got = one.update(batch, signs(batch))
    assert got["optimizer_steps"] == one.step == 0


def test_minibatches_and_epochs_are_optimizer_steps() -> None:
    one = learner(num_mini_batches=4, epochs=2)
    batch = on_policy(one)
    got = one.update(batch, signs(batch))
    assert got["optimizer_steps"] == one.step == 8
    assert got["kl/k3"] > 0


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}, {"lora": LoraConfig(rank=4)}, {"kl_coef": 0.1}])
def test_resumed_equals_uninterrupted(settings, tmp_path) -> None:
    settings = {"num_mini_batches": 2, "schedule": "linear", "total_steps": 20, "warmup_steps": 3, **settings}
    one = learner(**settings)
    batch = on_policy(one)
    one.update(batch, signs(batch))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two = learner(**settings)
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (one, two):
        each.update(batch, signs(batch))
    assert one.step == two.step == 4
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="another model"):
        learner().load_state_dict(learner(lora=LoraConfig()).state_dict())


def test_weights_include_the_tied_head() -> None:
    one = learner()
    assert one.weights().keys() == tiny_models.model().state_dict().keys()
    assert "lm_head.weight" in one.weights()


def test_adapters_are_merged_for_the_sampler_and_the_base_is_untouched() -> None:
    one = learner(lora=LoraConfig(rank=4), lr=1e-2)
    batch = on_policy(one)
    for _ in range(3):
        one.update(batch, signs(batch))
    plain = tiny_models.model()
    assert one.weights().keys() == plain.state_dict().keys()
    before = {n: p.clone() for n, p in one.model.get_base_model().state_dict().items() if "lora" not in n}
    plain.load_state_dict(dict(one.weights()))
    merged = Learner(plain, LearnerConfig()).logprobs(batch)
    adapted = one.logprobs(batch)
    assert max(float(np.abs(a - b).max()) for a, b in zip(merged, adapted, strict=True)) < 1e-4
    assert max(float(np.abs(a - t.logprobs[4:]).max()) for a, t in zip(adapted, batch, strict=True)) > 1e-2
    assert all(torch.equal(before[n], p) for n, p in one.model.get_base_model().state_dict().items() if n in before)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_weight_is_refused_and_merges_where_it_is_not_tied(target: str) -> None:
    """Tied, the sampler's merged weight would act at both ends of the model, the trained adapter at one."""
    lora = LoraConfig(rank=4, targets=("q_proj", target))
    with pytest.raises(UserError, match=f"tied.*leave .*{target} out of lora.targets"):
        Learner(tiny_models.model("qwen3"), LearnerConfig(lora=lora))
    one = Learner(tiny_models.model("llama"), LearnerConfig(lora=lora, lr=1e-2))
    batch = on_policy(one)
    for _ in range(2):
        one.update(batch, signs(batch))
    plain = tiny_models.model("llama")
    weight = f"{target}.weight" if target == "lm_head" else f"model.{target}.weight"
    assert not torch.equal(plain.state_dict()[weight], one.weights()[weight])
    plain.load_state_dict(dict(one.weights()))
    merged, adapted = Learner(plain, LearnerConfig()).logprobs(batch), one.logprobs(batch)
    assert max(float(np.abs(a - b).max()) for a, b in zip(merged, adapted, strict=True)) < 1e-4


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_adapters_resumed_from_a_checkpoint_equal_the_uninterrupted_run(kl: float, tmp_path) -> None:
    """The folder's weights are merged: base, adapters and optimizer come back bit for bit all the same."""
    settings = {"lora": LoraConfig(rank=4), "lr": 1e-2, "kl_coef": kl}
    one = learner(**settings)
    batch = on_policy(one)
    for _ in range(3):
        one.update(batch, signs(batch))
    plain = tiny_models.model()

    def write(folder) -> None:
        plain.save_pretrained(folder, state_dict={n: w for n, w in one.weights().items() if n != "lm_head.weight"})

    folder = checkpoint.save(tmp_path, checkpoint.State(3, {}, {"learner": one.state_dict()}), write, keep=1)
    merged = type(plain).from_pretrained(folder)
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)
    two = Learner(merged, LearnerConfig(**settings))
    two.load_state_dict(checkpoint.load(folder).tensors["learner"])
    assert two.weights().keys() == one.weights().keys()
    for _ in range(2):
        for a, b in zip(one.logprobs(batch), two.logprobs(batch), strict=True):
            assert np.array_equal(a, b)
        for each in (one, two):
            each.update(batch, signs(batch))
    for name, weight in one.weights().items():
        assert torch.equal(weight, two.weights()[name]), name


def test_folded_adapters_leave_a_plain_model_for_the_next_learner() -> None:
    model = tiny_models.model()
    one = Learner(model, LearnerConfig(lora=LoraConfig(rank=4), lr=1e-2))
    batch = on_policy(one)
    one.update(batch, signs(batch))
    expected = {name: weight.clone() for name, weight in one.weights().items()}
    one.merge_adapters()
    two = Learner(model, LearnerConfig())
    assert {n: True for n in expected} == {n: torch.equal(expected[n], w) for n, w in two.weights().items()}
    assert all(p.requires_grad for p in model.parameters())
    assert "base" not in two.state_dict()


def test_kl_reference_pulls_back() -> None:
    free, held = learner(), learner(kl_coef=5.0)
    batch = on_policy(free)
    for _ in range(10):
        free.update(batch, signs(batch))
        got = held.update(batch, signs(batch))
    assert got["kl/reference"] >= 0

    def distance(one: Learner) -> float:
        return float(
            np.mean([np.abs(a - t.logprobs[4:]).mean() for a, t in zip(one.logprobs(batch), batch, strict=True)])
        )

    assert distance(held) < 0.5 * distance(free)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_cold_start_learns_the_masked_tokens_only(optimizer: str) -> None:
    """Tokens 9 after 8 are taught, 3 after 2 are not; the first loss is the mean over masked tokens, by hand."""
    one = Learner(tiny_models.model(scale=1.0), LearnerConfig(optimizer=optimizer, lr=1e-2))
    data = [(np.array([2, 3, 8, 9]), np.array([False, False, False, True])) for _ in range(4)]
    start = one.logprobs([trajectory(prompt=[2, 3, 8], response=[9]), trajectory(prompt=[2], response=[3])])
    losses = [sft_step(one, data)["loss"] for _ in range(25)]
    assert losses[0] == pytest.approx(-start[0][0], abs=1e-5)
    end = one.logprobs([trajectory(prompt=[2, 3, 8], response=[9]), trajectory(prompt=[2], response=[3])])
    assert end[0][0] > -0.2
    assert end[1][0] < start[1][0] + 0.5
    assert one.step == 25


def test_schedule() -> None:
    linear = LearnerConfig(schedule="linear", warmup_steps=2, total_steps=6)
    assert [factor(linear, s) for s in range(8)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    cosine = LearnerConfig(schedule="cosine", total_steps=4)
    assert [factor(cosine, s) for s in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert factor(LearnerConfig(), 10**6) == 1


def test_orthogonalise() -> None:
    """Singular values within Muon's band around 1, singular vectors kept."""
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        g = torch.randn(shape)
        out = orthogonalise(g)
        assert (torch.linalg.svdvals(out) - 1).abs().max() < 0.35
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        assert ((out - u @ vh).norm() / (u @ vh).norm()) < 0.3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_advantage_that_is_not_finite(bad: float, tmp_path) -> None:
    """One token of one trajectory is enough."""
    one = Learner(tiny_models.model(), LearnerConfig(), dump_dir=tmp_path)
    weights = {n: p.clone() for n, p in one.weights().items()}
    batch = on_policy(one, 3)
    advantages = signs(batch)
    advantages.values[1][2] = bad
    with pytest.raises(UserError, match=r"advantages that are not finite, tasks t1; no step was taken") as error:
        one.update(batch, advantages)
    path = re.search(r"the batch is in (\S+):", str(error.value))[1]
    with open(path, encoding="utf-8") as lines:
        assert [Trajectory.from_dict(json.loads(line)) for line in lines] == batch
    assert all(torch.equal(p, weights[n]) for n, p in one.weights().items())


def test_an_estimator_owes_one_number_an_action_token() -> None:
    one = learner()
    batch = on_policy(one, 3)
    with pytest.raises(ValueError, match="one advantage an action token"):
        one.update(batch, Advantages([values[1:] for values in signs(batch).values]))


def test_a_gradient_that_is_not_finite_names_the_tasks_of_its_micro_batch(tmp_path) -> None:
    """An infinite weight in the row of token 60: only the trajectory that reads it breaks."""
    one = Learner(tiny_models.model("llama"), LearnerConfig(max_tokens_per_batch=1), dump_dir=tmp_path)
    with torch.no_grad():
        one.model.get_input_embeddings().weight[60] = float("inf")
    batch = [trajectory(f"t{i}", response=[5, 6, 60 if i == 2 else 7, 8]) for i in range(4)]
    before = one.weights()["lm_head.weight"].clone()
    with pytest.raises(UserError, match=r"gradients that are not finite, tasks t2;"):
        one.update(batch, signs(batch))
    assert torch.equal(one.weights()["lm_head.weight"], before)
    assert all(p.grad is None for p in one.model.parameters())
    assert one.step == 0
    assert (tmp_path / "bad-batch-0.jsonl").read_text().count("\n") == 4


def test_an_update_that_destroys_the_policy_is_said_before_anything_is_sampled_from_it() -> None:
    one = learner(lr=3e38)
    batch = on_policy(one)
    with pytest.raises(UserError, match=r"log-probabilities that are not finite: lower learner.lr"):
        one.update(batch, signs(batch))


def test_out_of_memory_names_the_budget_to_try() -> None:
    one = learner(max_tokens_per_batch=4096)

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    one.model.base_model.layers[0].forward = exhausted
    batch = [trajectory("a")]
    with pytest.raises(UserError, match=r": go on with --resume and learner.max_tokens_per_batch = 2048, or learner"):
        one.update(batch, constant(1.0, batch=batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "total_steps"),
        ({"los": "ppo_clip"}, "los"),
        ({"loss": "ppo"}, "ppo_clip"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch"),
    ],
)
def test_impossible_configurations(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LearnerConfig(**settings)


def test_adapters_that_fit_nothing() -> None:
    with pytest.raises(UserError, match=r"lora.targets"):
        learner(lora=LoraConfig(targets=("no_such_layer",)))


def test_a_step_cut_short_leaves_nothing_behind() -> None:
    """An update that ran out of memory half-way, then one that works: as if the first had not been."""
    one, two = learner(max_tokens_per_batch=1), learner(max_tokens_per_batch=1)
    batch = on_policy(one)
    forward, calls = one.model.base_model.layers[0].forward, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    one.model.base_model.layers[0].forward = sometimes
    with pytest.raises(UserError, match="out of memory"):
        one.update(batch, signs(batch))
    assert any(p.grad is not None for p in one.model.parameters())
    one.update(batch, signs(batch))
    two.update(batch, signs(batch))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_small_steps_are_not_lost_on_a_bfloat16_checkpoint(lora) -> None:
    """bfloat16 keeps 8 bits: a step of 1e-6 on a weight of 0.2 would round away."""
    one = Learner(tiny_models.model().bfloat16(), LearnerConfig(lr=1e-6, dtype="bfloat16", lora=lora))
    before = [p.clone() for p in one.model.parameters() if p.requires_grad]
    batch = on_policy(one)
    one.update(batch, signs(batch))
    after = [p for p in one.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in after)
    moved = [float((a != b).float().mean()) for a, b in zip(after, before, strict=True)]
    assert np.mean(moved) > (0.3 if lora else 0.8)
