"""What a run would refuse, `--dry-run` refuses in the same words; and a run before it reads the weights."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from test_architectures import write_model

from solostream.cli.main import main
from solostream.errors import UserError
from solostream.training.config import assign, validate
from solostream.training.run import setup

TINY = Path(__file__).parent / "tiny.toml"
GOOD = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a context of 256 tokens, and with weights that nobody can read: whoever tries says so."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model", "qwen3", tie_word_embeddings=True, max_position_embeddings=256)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    rows = [json.dumps(GOOD), json.dumps(GOOD), '{"text": "x"}']
    (tmp_path / "broken.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "model"


REFUSED = {
    "model.device=cuda:x": 'model.device = "cuda:x" is no device: "auto", "cpu", "cuda" or "cuda:1"',
    "model.device=meta": 'model.device = "meta" is not supported',
    "env.episode_tokens=256": "context of 256: lower episode_tokens to 255 or less",
    "learner.lora.targets=q_projj": "lora.targets = 'q_projj' does not fit this model",
    "learner.lora.targets=['lm_head']": "whose weight is tied",
    "cold_start.learner.lora.targets=['up_projj']": "lora.targets = ('up_projj',) does not fit this model",
    "cold_start.data=first-call": "there are no traces 'first-call': did you mean 'first-calls'?",
    "cold_start.data=nowhere": "there are no traces 'nowhere': give a file",
    "cold_start.data=a/b/c": "there are no traces 'a/b/c': give a file",
    "cold_start.data=broken.jsonl": "broken.jsonl: line 3: no messages",
    "run.engine=server": "engine 'server' has no servers: set engine.server.urls = [\"http://HOST:PORT\"]",
    "engine.server.urls=['gpu:8000']": "'gpu:8000' is no address: set engine.server.urls = ",
    "rollout.colocate=turns": 'rollout.colocate = "turns": the engine "hf" cannot sleep while the learner computes',
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_plan_is_refused_as_the_run_is(setting: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cold = ["cold_start.phases=[]"] if "data" in setting else []
    command = ["train", str(TINY), "--name", "x"]
    implied = {"rollout.colocate": ["rollout.mode=sync"], "engine.server.urls": ["run.engine=server"]}
    for given in (f"model.path={model}", *cold, *implied.get(setting.partition("=")[0], []), setting):
        command += ["--set", given]
    said = []
    for more in (["--dry-run"], []):
        assert main([*command, *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        lines = [line for line in lines if "torch.jit" not in line]  # under pytest torch tells how old it is
        assert len(lines) == 1, lines
        assert REFUSED[setting] in lines[0]
        said += lines
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("env.episode_tokens=1024", "a prompt of 1 tokens exceed the model's context of 1024"),
        ("learner.lora.targets=q_projj", "does not fit this model"),
    ],
)
def test_so_is_that_of_a_model_that_is_built(setting: str, words: str) -> None:
    tree = tomllib.loads(TINY.read_text())
    config = validate(assign(tree, [setting]))
    with pytest.raises(UserError, match=words):
        setup.refuse_modules(config, config.model)
    fits = validate(assign(tree, ["env.episode_tokens=1023", "learner.lora.targets='.*q_proj'"]))
    setup.refuse_modules(fits, fits.model)


def test_rows_that_are_left_out_are_no_reason(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sft", str(TINY), "--dry-run", "--set", "cold_start.phases=[]", "--set", f"model.path={model}"]
    assert main([*command, "--set", "cold_start.data=broken.jsonl", "--set", "cold_start.skip_bad=true"]) == 0
    assert "once through of broken.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("share", ["1.5", "-0.25", "0", "'0.5'"])
def test_a_share_of_a_gpu_is_one(share: str) -> None:
    key = f"engine.vllm.gpu_memory_utilization={share}"
    with pytest.raises(UserError, match=r"^engine.vllm.gpu_memory_utilization = .* set it above 0, to 1 at most$"):
        validate(assign({}, ["run.engine=vllm", key]))
    validate(assign({}, ["run.engine=vllm", "engine.vllm.gpu_memory_utilization=1"]))


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_template_that_is_missing_is_told_before_the_weights_are_read(
    more: tuple[str, ...], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "chat_template.jinja").unlink()
    assert main(["train", str(TINY), "--name", "x", "--set", f"model.path={model}", *more]) == 2
    assert "has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_other_attention_is_told_before_the_weights_are_read(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, "gemma3")
    (tmp_path / "model.safetensors").write_bytes(b"")
    command = ["train", str(TINY), "--name", "x", "--set", f"model.path={tmp_path}", "--set", f"run.root={tmp_path}"]
    assert main([*command, *more]) == 2
    assert "the hf engine runs full attention only, gemma3_text has sliding_attention" in capsys.readouterr().err
