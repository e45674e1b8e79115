"""A base in 4 bits: what it is rounded to, the learner's gradients, its sampler, checkpoints, resume and refusals."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from test_architectures import write_model
from tiny_ledgers import constant, trajectory
from transformers import AutoModelForCausalLM as Auto
from transformers import GPT2Config, GPT2LMHeadModel
from transformers import LlamaForCausalLM as Llama

from solostream.agent.engine import Sampling
from solostream.agent.engines import four_bit
from solostream.agent.engines.hf import HFEngine, lean
from solostream.agent.engines.live_weights import LiveWeights
from solostream.agent.trajectory_file import read_lines
from solostream.cli.main import main
from solostream.errors import UserError
from solostream.training.config import ModelConfig, validate
from solostream.training.config.dry_run import plan
from solostream.training.config.learner import LearnerConfig, LoraConfig
from solostream.training.learner.learner import Learner
from solostream.training.run import setup
from solostream.training.run.checkpoint import newest
from solostream.training.run.metric_logger import read
from solostream.training.run.model import load_model, load_weights, sampler_model

pytestmark = pytest.mark.skipif(
    find_spec("bitsandbytes") is None and not os.environ.get("CI"), reason="no bitsandbytes: pip install -e '.[4bit]'"
)
TINY = Path(__file__).parent / "tiny.toml"
# The sixteen values of NF4 (arXiv 2305.14314, Appendix E).
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # whole blocks of 64
BATCH = [
    trajectory("a", prompt=[9, 8, 70, 5], response=[21, 7, 33, 80, 3, 250, 17]),
    trajectory("b", prompt=[4, 61], response=[6, 90, 145, 12]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of architectures that the lean sampler knows, and one that it does not; weights five times the usual."""
    found = {}
    for kind in ("llama", "qwen3", "olmo2"):
        found[kind] = tmp_path_factory.mktemp(kind)
        write_model(found[kind], kind, **SIZES)
        model = Auto.from_pretrained(found[kind])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
        model.save_pretrained(found[kind])
    return found


def packed(folder: Path) -> Any:
    config = ModelConfig(path=str(folder), dtype="4bit")
    return load_weights(config, str(folder), torch.device("cpu"), adapters=True)


def adapted(model: Any, **settings: Any) -> Learner:
    """Adapters that do something already: fresh ones add nothing, and their gradients are half zero."""
    torch.manual_seed(11)
    learner = Learner(model, LearnerConfig(lora=LoraConfig(rank=3), lr=1e-2, grad_clip=0.0, **settings))
    with torch.no_grad():
        for name, parameter in learner.optimizer.named.items():
            if ".lora_B" in name:
                parameter.normal_(std=0.1)
    return learner


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    learner.optimizer.zero()
    with learner.scorer.active():
        for pack in learner.packs([(t.token_ids, t.action_mask) for t in BATCH]):
            logprobs, _ = learner.scorer(pack)
            (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in learner.optimizer.named.items()}


def off(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The distance of the two over the length of the second."""
    assert one.keys() == two.keys()
    distance = sum((one[name] - two[name]).float().square().sum() for name in two)
    return float(distance / sum(t.float().square().sum() for t in two.values())) ** 0.5


def test_each_weight_is_the_nearest_of_sixteen_times_its_blocks_largest(folders: dict[str, Path]) -> None:
    exact = Llama.from_pretrained(folders["llama"], dtype=torch.bfloat16)
    small = packed(folders["llama"])
    assert small.model.embed_tokens.weight.dtype == small.model.norm.weight.dtype == torch.bfloat16
    for name, weight in LiveWeights(small).items():
        original = exact.state_dict()[name].float().numpy()
        if "_proj" not in name:
            assert np.array_equal(weight.float().numpy(), original), name
            continue
        blocks = original.reshape(-1, 64)
        largest = np.abs(blocks).max(1, keepdims=True)
        nearest = NF4[np.abs(blocks[..., None] / largest[..., None] - NF4).argmin(-1)] * largest
        # The largest is kept in 8 bits, so it may be off by a hundredth, and all of its block with it; where two values
        # are as near, either is right.
        difference = np.abs(weight.float().numpy().reshape(-1, 64) - nearest) / largest
        assert np.quantile(difference, 0.999) < 0.02, name
        assert np.abs(weight.float().numpy().reshape(-1, 64) - blocks).max() < 0.17 * largest.max(), name
        assert np.abs(blocks - nearest).max() > 0.05 * largest.max(), name


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2"])
def test_gradients_of_the_adapters_are_those_over_the_base_made_whole(kind: str, folders: dict[str, Path]) -> None:
    small = packed(folders[kind])
    half, whole, exact = (Auto.from_pretrained(folders[kind], dtype=dtype) for dtype in ("bfloat16", *["float32"] * 2))
    for one in (half, whole):
        one.load_state_dict({name: tensor.to(one.dtype) for name, tensor in LiveWeights(small).items()})
    learner, plain = adapted(small), adapted(half)
    found = gradients(learner)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert off(found, gradients(plain)) < 0.05  # the same products, rounded in another order
    assert off(found, gradients(adapted(whole))) < 0.12  # bfloat16's rounding
    assert off(found, gradients(adapted(exact))) > 0.3  # what 4 bits have changed
    assert learner.shape == plain.shape  # of which utilisation is counted


@pytest.mark.parametrize(("kind", "in_place"), [("llama", False), ("llama", True), ("qwen3", False), ("olmo2", True)])
async def test_the_sampler_reads_the_learners_own_weights_and_leaves_them(
    kind: str, in_place: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_place:
        monkeypatch.setattr(lean, "SMALL", 0)
    model, tokenizer = load_model(ModelConfig(path=str(folders[kind]), dtype="4bit"), adapters=True)
    config = validate({"model": {"path": "some", "dtype": "4bit"}, "learner": {"lora": {}}})
    assert setup.why_a_second_copy(config, model) is None
    engine = HFEngine(setup.module_beside(config, model), tokenizer, slots=4)
    assert engine._forward.in_place == in_place
    learner = adapted(model)
    before = gradients(learner)
    try:
        await engine.load_weights(learner.weights(), 1)
        generation = await engine.generate([9, 8, 70, 5], Sampling(24, seed=3))
    finally:
        await engine.close()
    sampled = trajectory("a", prompt=[9, 8, 70, 5], response=generation.token_ids)
    assert np.abs(learner.logprobs([sampled])[0] - generation.logprobs).max() < 0.1
    assert off(gradients(learner), before) == 0


async def test_a_sampler_with_a_copy_of_its_own_gets_whole_weights(folders: dict[str, Path]) -> None:
    model, tokenizer = load_model(ModelConfig(path=str(folders["olmo2"]), dtype="4bit"), adapters=True)
    learner = adapted(model)
    own = sampler_model(model.config, torch.float32, torch.device("cpu"))
    assert not any(map(four_bit.is_packed, own.modules()))
    engine = HFEngine(own, tokenizer, slots=2)
    try:
        await engine.load_weights(learner.weights(), 1)
        generation = await engine.generate([4, 61], Sampling(9, seed=5))
    finally:
        await engine.close()
    sampled = trajectory("b", prompt=[4, 61], response=generation.token_ids)
    assert np.abs(learner.logprobs([sampled])[0] - generation.logprobs).max() < 0.1


def test_a_checkpoint_is_the_policy_made_whole_and_an_adapter_for_the_base(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    learner = adapted(packed(folders["qwen3"]), kl_coef=0.1)
    reference = learner.gradient.reference.model
    assert all(a is b for a, b in zip(frozen(learner.model), frozen(reference), strict=True))
    moved = learner.update(BATCH, constant(1.0, -1.0, batch=BATCH))
    assert moved["drift"] > 0.01
    learner.save(tmp_path, base=False, on=folders["qwen3"])
    said = learner.logprobs(BATCH)

    config = (tmp_path / "config.json").read_text()
    assert "quantization" not in config
    assert '"dtype": "bfloat16"' in config
    merged = Learner(Auto.from_pretrained(tmp_path), LearnerConfig()).logprobs(BATCH)
    over = peft.PeftModel.from_pretrained(packed(folders["qwen3"]), tmp_path / "adapter")
    taken_up = adapted(packed(folders["qwen3"]), kl_coef=0.1)
    taken_up.load(tmp_path)
    for row, trained in enumerate(said):
        assert np.abs(merged[row] - trained).max() < 0.05
        assert np.array_equal(taken_up.logprobs(BATCH)[row], trained)
        assert np.abs(logprobs(over, row) - trained).max() < 0.05
    assert (
        np.abs(logprobs(packed(folders["qwen3"]), 0) - said[0]).max() > 0.2
    )  # without the adapter it is another policy


def frozen(model: Any) -> list[Any]:
    return [parameter for name, parameter in model.named_parameters() if ".lora_" not in name]


@torch.no_grad()
def logprobs(model: Any, row: int) -> np.ndarray:
    ids = torch.as_tensor(BATCH[row].token_ids)
    logits = model(input_ids=ids[None]).logits[0, :-1].float().log_softmax(-1)
    return logits.gather(-1, ids[1:, None])[:, 0].numpy()[BATCH[row].action_mask[1:]]


def train(folder: Path, root: Path, name: str, *settings: str, resume: bool = False) -> Path:
    settings = (
        f"model.path={folder}", "model.dtype=4bit", "learner.lora={rank=3}", "cold_start.phases=[]", "data.test=2",
        "learner.kl_coef=0.01", "learner.entropy_coef=0.1", "rollout.batch=4", "algorithm.tracker.start_samples=0",
        "eval.greedy=false", "run.checkpoint_every=1", f"run.root={root}", *settings,
    )  # fmt: skip
    flags = (part for setting in settings for part in ("--set", setting))
    assert main(["train", str(TINY), "--name", name, *(["--resume"] if resume else []), *flags]) == 0
    return root / name


def test_a_run_resumes_exactly_and_says_what_it_sampled_from(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = folders["olmo2"]
    whole = train(folder, tmp_path, "whole", "run.steps=2")
    train(folder, tmp_path, "parts", "run.steps=1")
    parts = train(folder, tmp_path, "parts", "run.steps=2", resume=True)
    one, two = (torch.load(run / "checkpoints/step-000002/learner.pt") for run in (whole, parts))
    assert all(".lora_" in name for name in one["model"])
    assert all(torch.equal(tensor, two["model"][name]) for name, tensor in one["model"].items())
    assert any(tensor.abs().max() > 1e-4 for name, tensor in one["model"].items() if "lora_B" in name)
    assert not (whole / "base").exists()
    mismatch = [row["mismatch/max"] for row in read(whole / "metrics.jsonl") if row["phase"] == "rl"]
    assert max(mismatch) < 0.2
    assert read_lines(whole / "trajectories.jsonl")
    assert newest(whole / "checkpoints")[0].name == "step-000002"
    out = ["--limit", "2", "--out", str(tmp_path / "evaluated")]
    assert main(["eval", str(whole / "checkpoints/step-000002"), *out]) == 0


def test_the_plan_counts_what_lies_there(folders: dict[str, Path]) -> None:
    sections: dict[str, Any] = {"model": {"path": str(folders["qwen3"]), "dtype": "4bit"}, "learner": {"lora": {}}}
    planned = plan(validate(sections), 4, 1).memory["base"]
    there = packed(folders["qwen3"])
    scales = [t for name, t in there.state_dict().items() if ".absmax" in name or ".nested_absmax" in name]
    lies = sum(t.numel() * t.element_size() for t in [*there.parameters(), *scales])
    assert planned == pytest.approx(lies, rel=0.01)
    half = validate({**sections, "model": {**sections["model"], "dtype": "bfloat16"}})
    assert plan(half, 4, 1).memory["base"] > 1.5 * planned


LORA = {"lora": {"rank": 2}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, r'model.dtype = "4bit" is of a base under adapters: set learner.lora'),
        ({"learner": LORA, "model": {"path": "build"}}, "of a model that is loaded: set model.path"),
        ({"learner": LORA, "cold_start": {"data": "x.jsonl"}}, "run it first"),
        ({"learner": LORA, "cluster": {"learners": 2}}, "set cluster.learners = 1, or model.dtype"),
    ],
)
def test_what_4_bits_cannot_is_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        validate({**sections, "model": {"path": "some", "dtype": "4bit", **sections.get("model", {})}})
    assert "\n" not in str(error.value)


def test_without_bitsandbytes_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'solostream\[4bit\]'"):
        setup.refuse_learning(validate({"model": {"path": "some", "dtype": "4bit"}, "learner": LORA}))


def test_models_whose_weights_no_4_bits_hold_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        tmp_path
    )
    write_tokenizer(folders["qwen3"], tmp_path)
    with pytest.raises(UserError, match=r"transposed, which model.dtype = \"4bit\" cannot"):
        load_model(ModelConfig(path=str(tmp_path), dtype="4bit"), adapters=True)
    write_model(tmp_path / "odd", "llama", **{**SIZES, "intermediate_size": 96})
    with pytest.raises(UserError, match=r"down_proj reads 96 numbers, no multiple of 64, on a CPU"):
        load_model(ModelConfig(path=str(tmp_path / "odd"), dtype="4bit"), adapters=True)
    packed(folders["qwen3"]).save_pretrained(tmp_path / "small")
    sections = {"model": {"path": str(tmp_path / "small"), "dtype": "bfloat16"}, "learner": LORA}
    with pytest.raises(UserError, match=r"is quantized \(bitsandbytes\), which cannot be trained: take the weights"):
        plan(validate(sections), 4, 1)


def write_tokenizer(source: Path, target: Path) -> None:
    load_model(ModelConfig(path=str(source)), shape_only=True)[1].save_pretrained(target)
