"""Every recipe is a plan that holds: `--dry-run` on the published shape of its model, without the model."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from solostream.cli.main import main
from solostream.errors import UserError
from solostream.training.config import load
from solostream.training.config.dry_run import plan
from solostream.training.config.parse import recipes
from solostream.training.run.train import train

SHAPES = Path(__file__).parent / "shapes"
# parameters as the model's page on the Hub counts them (a tied head once)
PUBLISHED = {
    "SmolLM2-135M-Instruct": 134_515_008,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-4B": 4_022_468_096,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
}
REAL = [name for name in recipes() if name != "quickstart"]
GPU = ["qwen3-0.6b", "qwen3-4b-lora", "qwen3-8b-spo", "retool", "grpo-baseline", "dapo", "spo-plus-plus"]  # ask for one


SEVERAL = ["qwen3-8b-spo", "grpo-baseline", "spo-plus-plus"]  # GPUs: one alone cannot learn all weights of 8 B


def model_of(recipe: str) -> str:
    return tomllib.loads(recipes()[recipe].read_text())["model"]["path"].partition("/")[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, word in (("problems", "plus"), ("test", "and")):
        rows = [{"prompt": f"What is {i} {word} {i}?", "answer": str(2 * i)} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(SHAPES, tmp_path / "shapes")
    return tmp_path


def test_what_is_promised_is_there() -> None:
    assert {"quickstart", "smollm2-135m-cpu", *GPU} <= set(recipes())


@pytest.mark.parametrize("recipe", REAL)
def test_dry_run_on_the_published_shape(recipe: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(recipe)
    given = [f"model.path=shapes/{model}", "data.path=problems.jsonl", "data.test_path=test.jsonl"]
    if recipe == "own-data":
        given.pop()  # it divides its one list
    command = ["train", recipe, "--dry-run", *(word for setting in given for word in ("--set", setting))]
    assert main(command) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert f"runs/{recipe}" in shown.splitlines()
    assert f"shapes/{model}" in shown
    found = plan(load(Path(recipe), given), 40, 40)
    assert found.shape.parameters == PUBLISHED[model]


def test_the_published_method_is_as_published() -> None:
    """The five settings that docs/algorithms.md names, in which the defaults are not the paper's."""
    made = load(Path("qwen3-8b-spo"))
    spo, tracker = made.algorithm.options["spo"], made.algorithm.tracker
    assert (spo["measure"], spo["divergence"]) == ("trajectory", "rescore")
    assert (tracker.start_samples, made.algorithm.stages, made.learner.num_mini_batches) == (8, (), 8)


def test_a_run_has_the_whole_name_of_its_file(here: Path) -> None:
    """Points and all: of names that differ after one, the second would be refused."""
    for name in ("qwen3-0.6b", "mine-1.7b"):
        (here / f"{name}.toml").write_text(recipes()["qwen3-0.6b"].read_text())
        (here / "runs" / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"^runs/{name} exists"):
            train(f"{name}.toml")
    with pytest.raises(UserError, match=r"^runs/qwen3-0\.6b exists"):
        train("qwen3-0.6b")


@pytest.mark.parametrize(
    "recipe", ["own-data", "gsm8k", "smollm2-135m-cpu", "quickstart", "qwen3-4b-lora", "qwen3-0.6b"]
)
def test_who_starts_from_a_recipe_gets_the_single_stream_that_is_recommended(recipe: str) -> None:
    """*Ours* and negatives at a quarter, of docs/evidence.md; recipes of papers have the papers' settings."""
    algorithm = load(Path(recipe)).completed().algorithm
    spo, tracker = algorithm.options["spo"], algorithm.tracker
    found = [spo[key] for key in ("measure", "baseline", "slope", "scale")]
    assert found == ["energy", "energy", "fitted", "running"]
    assert (tracker.start_samples, tracker.pooled, tracker.shared_drift) == (0, True, 0.5)
    assert algorithm.components == ("spo", "negative_weight", "aspo")
    assert algorithm.options["negative_weight"] == {"weight": 0.25}


@pytest.mark.parametrize("recipe", recipes())
def test_each_says_what_it_takes_and_every_key_is_commented(recipe: str) -> None:
    text = recipes()[recipe].read_text()
    assert text.startswith("# ")
    lines = text.splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"[\w-]+ = ", line) and not line.endswith("[")]
    assert len(keys) > 10
    assert not [lines[n] for n in keys if "# " not in lines[n] and not lines[n - 1].startswith("# ")]
    if recipe in GPU:
        head = text.partition("[run]")[0]
        assert re.search(r"Planned:", head), "cost and time, marked as planned"
        assert "measured" in head.lower()
        assert re.search(r"GPU|H100|H200", head)


def test_the_cold_start_alone_has_a_plan_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "quickstart", "--dry-run"]) == 0
    assert "memory cpu" in capsys.readouterr().out
    assert not (here / "runs").exists()


@pytest.mark.parametrize("recipe", GPU)
def test_without_its_device_a_recipe_says_so_in_one_line(
    recipe: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["train", recipe]) == 2
    told = capsys.readouterr().err.strip()
    assert 'model.device = "cuda"' in told
    assert "\n" not in told
    assert not (here / "runs").exists()


@pytest.mark.parametrize("recipe", [*(name for name in GPU if name not in SEVERAL), "gsm8k"])
def test_a_recipe_fits_the_card_that_its_head_names(recipe: str, here: Path) -> None:
    """Every phase, beside a vLLM that holds its weights and two of the longest episodes at least."""
    head = recipes()[recipe].read_text().partition("[run]")[0]
    gigabytes = re.search(r"(\d+) GB GPU|GPU of (\d+) GB", head)
    assert gigabytes, "the card that it is for"
    total = int(gigabytes[1] or gigabytes[2]) * 10**9
    data = ["data.path=problems.jsonl", "data.test_path=test.jsonl"]
    config = load(Path(recipe), [f"model.path=shapes/{model_of(recipe)}", *data])
    found = plan(config, 40, 40, device="cuda", total=total)
    for phase, parts in found.phases.items():
        assert sum(parts.values()) <= total, (phase, parts)
    if config.run.engine == "vllm":
        assert config.rollout.colocate == "beside"
        shape = found.shape
        a_token = 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim
        episodes = 2 * (config.env.episode_tokens + 64) * a_token
        assert found.memory["vLLM's share"] > 2 * shape.parameters + episodes


@pytest.mark.parametrize("recipe", ["own-data", "gsm8k"])
def test_what_trains_all_weights_samples_from_them(recipe: str, here: Path) -> None:
    data = ["data.path=problems.jsonl", "data.test_path=test.jsonl"][: 1 if recipe == "own-data" else 2]
    config = load(Path(recipe), [f"model.path=shapes/{model_of(recipe)}", *data])
    assert "sampler" not in plan(config, 40, 40).memory


@pytest.mark.parametrize("recipe", SEVERAL)
def test_a_recipe_for_several_cards_names_them(recipe: str, here: Path) -> None:
    config = load(Path(recipe), [f"model.path=shapes/{model_of(recipe)}"])
    assert "eight GPUs" in recipes()[recipe].read_text().partition("[run]")[0]
    assert config.cluster.learners + len(config.engine["server"]["urls"]) == 8
    for phase, parts in plan(config, 40, 40, device="cuda", total=80 * 10**9).phases.items():
        assert sum(parts[part] for part in ("weights", "gradients", "optimizer")) == 16 * PUBLISHED["Qwen3-8B"] / 4
        assert sum(parts.values()) < 80e9, phase


@pytest.mark.parametrize("recipe", SEVERAL)
def test_the_plan_of_several_cards_is_that_of_each(
    recipe: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of 16 bytes a parameter; all of it, on one of five learners and on one alone, is told as it is."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def shown(*more: str) -> str:
        given = ["model.path=shapes/Qwen3-8B", "data.path=problems.jsonl", "data.test_path=test.jsonl", *more]
        assert main(["train", recipe, "--dry-run", *(word for one in given for word in ("--set", one))]) == 0
        return capsys.readouterr().out

    four = shown()
    assert "4 learn, 4 servers sample, 0 play" in four
    assert "each of 4 learners: program 600 MiB, weights 7.63 GiB, gradients 7.63 GiB, optimizer 15.3 GiB" in four
    assert "a card of 80 GB takes it" in four
    assert "each of 5 learners: program 600 MiB, weights 6.1 GiB" in shown("cluster.learners=5")
    alone = shown("cluster.learners=1")
    assert "weights 30.5 GiB, gradients 30.5 GiB" in alone
    assert "a card of 192 GB takes it" in alone


def test_the_smallest_real_run_takes_four_gigabytes(here: Path) -> None:
    """As its head says: in both phases."""
    found = plan(load(Path("smollm2-135m-cpu"), ["model.path=shapes/SmolLM2-135M-Instruct"]), 240, 48)
    assert {phase: sum(parts.values()) <= 4e9 for phase, parts in found.phases.items()} == {
        "the cold start": True,
        "reinforcement": True,
    }


def test_the_cost_of_all_weights_of_8b_and_how_it_runs_on_one_card_are_what_its_recipe_says(here: Path) -> None:
    """16 bytes a parameter: 131 GB, which is why the recipe names adapters for one card: in both phases."""
    given = ["model.path=shapes/Qwen3-8B", "data.path=problems.jsonl", "data.test_path=test.jsonl"]
    alone = [*given, "cluster.learners=1"]
    whole = plan(load(Path("qwen3-8b-spo"), alone), 40, 40, device="cuda").phases["reinforcement"]
    assert 130.9e9 < whole["weights"] + whole["gradients"] + whole["optimizer"] < 131.2e9
    head = recipes()["qwen3-8b-spo"].read_text().partition("[run]")[0]
    named = re.findall(r"--set ((?:[^\s']|'[^']*')+)", head)
    adapters = [setting.replace("'", "") for setting in named]
    late = [setting for setting in adapters if not setting.startswith("cold_start.learner.lora=")]
    found = plan(load(Path("qwen3-8b-spo"), [*given, *adapters]), 40, 40, device="cuda").phases
    assert all(sum(parts.values()) < 80e9 for parts in found.values())
    assert sum(plan(load(Path("qwen3-8b-spo"), [*given, *late]), 40, 40, device="cuda").memory.values()) > 80e9
