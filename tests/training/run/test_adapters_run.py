"""A run with adapters: peft's folder in each checkpoint, the base once in the run, and an exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM as Auto

from solostream.cli.main import main
from solostream.training.config import load
from solostream.training.run.interrupt import Interrupted
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.trainer import Trainer

TINY = Path(__file__).parent / "tiny.toml"
LORA = (
    "run.checkpoint_every=1",
    "run.keep=9",
    "rollout.batch=4",
    "learner.lora.rank=3",
    "learner.kl_coef=0.01",
    "learner.entropy_coef=0.1",  # a random model earns nothing: this moves it
)


def train(root: Path, name: str, *settings: str, resume: bool | Path = False) -> Path:
    settings = (f"run.root={root}", "eval.greedy=false", "data.test=2", "algorithm.tracker.start_samples=0", *settings)
    more = ["--resume", *([str(resume)] if isinstance(resume, Path) else [])] if resume else []
    flags = (part for s in settings for part in ("--set", s))
    assert main(["train", str(TINY), "--name", name, *more, *flags]) == 0
    return root / name / "checkpoints"


def test_adapters_are_kept_apart_from_a_base_that_is_written_once(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", *LORA, "run.steps=2")
    base = Auto.from_pretrained(tmp_path / "whole" / "base")
    for step in (1, 2):
        folder = whole / f"step-{step:06d}"
        adapted = peft.PeftModel.from_pretrained(
            Auto.from_pretrained(tmp_path / "whole" / "base"), folder / "adapter"
        ).merge_and_unload()
        merged = Auto.from_pretrained(folder)
        for (name, one), other in zip(merged.named_parameters(), adapted.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-6), name
        difference = merged.model.layers[0].mlp.up_proj.weight - base.model.layers[0].mlp.up_proj.weight
        assert difference.abs().max() > 1e-5
        state = torch.load(folder / "learner.pt", weights_only=True)
        assert "base" not in state
        assert all(".lora_" in name for part in ("model", "reference") for name in state[part])

    train(tmp_path, "parts", *LORA, "run.steps=1")
    parts = train(tmp_path, "parts", *LORA, "run.steps=2", resume=True)
    one, two = (Auto.from_pretrained(folder / "step-000002").state_dict() for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("built", [True, False], ids=["built", "cold start"])
def test_another_folder_goes_on_from_a_checkpoint_and_has_its_base(
    built: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*LORA, *(["cold_start.phases=[]"] if built else []))
    whole = train(tmp_path, "whole", *settings, "run.steps=3")
    train(tmp_path, "parts", "run.steps=2", resume=whole / "step-000001")
    base = tmp_path / "parts" / "base"
    (tmp_path / "whole").rename(tmp_path / "away")  # the new folder stands alone
    parts = train(tmp_path, "parts", "run.steps=3", resume=True)
    one, two = (Auto.from_pretrained(f / "step-000003").state_dict() for f in (tmp_path / "away/checkpoints", parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((parts / "step-000003/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == (
        str(base)
    )
    again = train(tmp_path, "parts", "run.steps=3", resume=tmp_path / "away/checkpoints/step-000002")  # has it already
    assert (again / "step-000003").is_dir()

    def refused(name: str, source: Path) -> str:
        capsys.readouterr()
        assert main(["train", str(TINY), "--name", name, "--set", f"run.root={tmp_path}", "--resume", str(source)]) == 2
        (line,) = (s for s in capsys.readouterr().err.splitlines() if s.startswith("solostream:"))
        return line

    with (base / "config.json").open("a") as file:
        file.write(" ")
    assert "go on under another --name" in refused("parts", tmp_path / "away/checkpoints/step-000002")
    (tmp_path / "away" / "base").rename(tmp_path / "base")
    assert "there are no weights under them in" in refused("other", tmp_path / "away/checkpoints/step-000002")
    assert not (tmp_path / "other").exists()


ADAPTED = (
    "model.dtype=bfloat16",
    "cold_start.phases=[]",
    "learner.lora.rank=3",
    "learner.entropy_coef=0.1",
    "rollout.batch=4",
    "data.test=2",
    "algorithm.tracker.start_samples=0",
    "eval.greedy=false",
    "run.steps=1",
)


def adapted(root: Path, name: str, **options: Any) -> Trainer:
    return Trainer(load(TINY, [*ADAPTED, f"run.root={root}", f"run.name={name}"]), **options)


def test_a_base_that_nothing_trains_stays_in_its_dtype_also_when_stopped_before_the_first_step(tmp_path: Path) -> None:
    class Stopping(ProgressDisplay):
        def stage(self, title: str, total: int, done: int = 0) -> Any:
            if title == "before":
                trainer.stop()
            return super().stage(title, total, done)

    whole = adapted(tmp_path, "whole")
    whole.run()
    trainer = adapted(tmp_path, "parts", view=Stopping())
    with pytest.raises(Interrupted):
        trainer.run()
    left = tmp_path / "parts/checkpoints/step-000000"
    assert "base" not in torch.load(left / "learner.pt", weights_only=True)
    parts = adapted(tmp_path, "parts", source=left)
    parts.run()
    for run in (whole, trainer, parts):
        of_base = {p.dtype for name, p in run.parts.model.named_parameters() if ".lora_" not in name}
        assert of_base == {torch.bfloat16}
    one, two = (torch.load(tmp_path / name / "checkpoints/step-000001/learner.pt") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, two["model"][name]) for name, tensor in one["model"].items())
    assert any(tensor.abs().max() > 1e-4 for name, tensor in one["model"].items() if "lora_B" in name)


def test_a_base_that_only_adapters_train_stays_in_its_dtype_in_both_phases(tmp_path: Path) -> None:
    """What the cold start has learnt is merged into it once, and lies in the run for all checkpoints."""
    both = (
        *LORA,
        "model.dtype=bfloat16",
        "cold_start.phases=[{steps=3, mix={early=1.0}}]",
        "cold_start.learner={lora={rank=5}, lr=3e-2}",
    )
    whole = train(tmp_path, "whole", *both, "run.steps=2")
    base = Auto.from_pretrained(tmp_path / "whole" / "base", dtype="auto")
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    fresh = adapted(tmp_path, "fresh").parts.model.state_dict()  # as it was built
    moved = (base.model.layers[0].mlp.up_proj.weight - fresh["model.layers.0.mlp.up_proj.weight"]).abs()
    assert moved.max() > 1e-3
    assert torch.equal(base.model.embed_tokens.weight, fresh["model.embed_tokens.weight"])

    train(tmp_path, "parts", *both, "run.steps=1")
    parts = train(tmp_path, "parts", *both, "run.steps=2", resume=True)
    one, two = (torch.load(folder / "step-000002/learner.pt")["model"] for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(tensor.abs().max() > 1e-5 for name, tensor in one.items() if "lora_B" in name)
