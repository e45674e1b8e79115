"""A model that cannot be had, or has no chat template, and a device that lacks something: one line with the remedy."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_architectures import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, core_model_loading

from solostream.agent.engine import EngineError
from solostream.agent.engines.hf import HFEngine
from solostream.agent.engines.hf import device as hf_device
from solostream.agent.engines.hf import load_model as load_for_sampling
from solostream.agent.engines.hf.device import device_told, has_bfloat16, straight_to
from solostream.cli.main import main
from solostream.errors import SandboxError, UserError
from solostream.training.config import ModelConfig, validate
from solostream.training.config.learner import LearnerConfig
from solostream.training.config.memory.shape import shape_of
from solostream.training.learner import optimizer
from solostream.training.learner.device import base_dtype, compute_dtype, sampler_dtype
from solostream.training.learner.guards import memory_advice
from solostream.training.learner.learner import Learner
from solostream.training.run import model
from solostream.training.run.model import load_model
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.train import newest, run

TINY = Path(__file__).parent / "tiny.toml"


def test_a_missing_model_is_one_line() -> None:
    with pytest.raises(UserError, match=r'model.path = "nobody/nothing": no such folder') as error:
        load_model(ModelConfig(path="nobody/nothing"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./mine", "../models/mine", "one/two/three", "~/mine"])
def test_a_path_that_is_not_there_is_told_as_a_path(path: str) -> None:
    """Their client would say how names on the Hub are formed, and name an argument of its own."""
    config = validate({"model": {"path": path}})
    for ask in (lambda: load_model(config.model), lambda: shape_of(config), lambda: load_for_sampling(path)):
        with pytest.raises(UserError, match=r"no such folder, and no name that .*: check the path") as error:
            ask()
        assert not re.search("[Rr]epo", str(error.value))


def test_a_base_model_without_a_chat_template_is_offered_one(tmp_path: Path) -> None:
    write_model(tmp_path, "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r'no chat template: set model.chat_template = "chatml"'):
        load_model(ModelConfig(path=str(tmp_path)))
    assert load_model(ModelConfig(path=str(tmp_path), chat_template="chatml"))[1].chat_template is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"early_stopping": True, "num_beams": 1}, {"early_stopping": None}),
        ({"do_sample": True, "top_k": 20}, {"do_sample": True, "top_k": 20}),
    ],
)
def test_defaults_of_generate_that_transformers_reads_and_will_not_write_end_no_run(
    given: dict[str, Any], kept: dict[str, Any], tmp_path: Path
) -> None:
    """Older folders have them: the first checkpoint of a run was a traceback."""
    write_model(tmp_path / "old", "qwen3")
    place = tmp_path / "old/generation_config.json"
    place.write_text(json.dumps({"eos_token_id": [2, 5], **given}))
    loaded, _ = load_model(ModelConfig(path=str(tmp_path / "old")))
    loaded.save_pretrained(tmp_path / "new")
    written = json.loads((tmp_path / "new/generation_config.json").read_text())
    assert {name: written.get(name) for name in kept} == kept
    assert written["eos_token_id"] == [2, 5]


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1000])


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK no archive")


def deeper(folder: Path) -> None:
    _config(folder, num_hidden_layers=5, layer_types=["full_attention"] * 5)


def wider(folder: Path) -> None:
    _config(folder, intermediate_size=80)


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "cannot be read (Error while deserializing header: incomplete metadata, file not fully covered)"),
        (emptied, "cannot be read (Error while deserializing header: header too small)"),
        (pickled, "cannot be read ("),
        (deeper, "are not those of its config.json: 33 tensors are missing (model.layers.2.input_layernorm.weight, "),
        (wider, "are not those of its config.json: 6 tensors have another shape (model.layers.0.mlp.down_proj.weight "),
    ],
)
def test_weights_that_are_not_whole_are_refused_in_one_line(
    harm: Any, said: str, tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers would fill what is missing with random numbers and go on."""
    folder = tmp_path / "model"
    write_model(folder, "qwen3")
    harm(folder)
    capsys.readouterr()
    with pytest.raises(UserError, match=re.escape(f"the weights in {folder} {said}")) as of_training:
        load_model(ModelConfig(path=str(folder)))
    with pytest.raises(UserError, match=re.escape(f"the weights in {folder} {said}")) as of_sampling:
        load_for_sampling(str(folder))
    assert "\n" not in f"{of_training.value}{of_sampling.value}"
    assert "LOAD REPORT" not in caplog.text + capsys.readouterr().err


def test_memory_that_ends_while_a_weight_is_converted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers keeps the error of a tensor for its table, and raises one that says nothing of memory."""
    write_model(tmp_path, "qwen3")
    monkeypatch.setattr(core_model_loading, "set_param_for_module", exhausted)
    with pytest.raises(UserError, match=r"^out of memory \(.*CUDA out of memory.*\): .* does not fit: make room"):
        load_for_sampling(str(tmp_path))


def exhausted(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 23.99 GiB")


def too_much(*args: object, **kwargs: object) -> None:
    """What torch itself says on a CPU: a RuntimeError, of more than any address can reach."""
    torch.empty(1 << 60)


@pytest.mark.parametrize(
    ("fails", "cause"),
    [(exhausted, "CUDA out of memory"), (too_much, "DefaultCPUAllocator: can't allocate memory: .*")],
)
@pytest.mark.parametrize(
    ("place", "method", "said"),
    [
        (model, "build_model", r"out of memory \(CAUSE\): --dry-run lists .* train goes on with --resume"),
        (optimizer.Optimizer, "__init__", r"out of memory \(CAUSE\): --dry-run lists"),
        (optimizer.Optimizer, "apply", r"--resume and cold_start.learner.max_tokens_per_batch = 4096, or cold_start"),
    ],
)
def test_out_of_memory_anywhere_is_one_line(
    place: Any, method: str, said: str, fails: Any, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validate(tomllib.loads(TINY.read_text()))
    monkeypatch.setattr(place, method, fails)
    with pytest.raises(UserError, match=said.replace("CAUSE", cause)) as error:
        run(config, tmp_path / "run", None, ProgressDisplay())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["CUDA error: out of memory\nCUDA kernel errors might", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"],
)
def test_a_gpu_that_is_too_full_to_begin_with_has_not_failed(text: str) -> None:
    with pytest.raises(UserError, match=r"^out of memory \(CUDA error: [^\n]*\): take less$"), device_told("take less"):
        raise RuntimeError(text)


GONE = torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 23.99 GiB")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, r"out of memory \(CUDA out of memory\): sample fewer than 6 episodes at a time: train with "
         r"engine\.hf\.concurrency = 3, or .* rollout\.batch, rollout\.over_provision or env\.episode_tokens;"),
        (GONE, r"the GPU failed \(CUDA error: unspecified launch failure\): nvidia-smi says"),
    ],
)  # fmt: skip
def test_a_sampler_whose_device_is_full_or_gone_leaves_a_run_to_go_on_with(
    error: RuntimeError, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the engine was opened again in vain: the checkpoint is kept, and so is what the advice says to set."""
    tree = tomllib.loads(TINY.read_text()) | {"cold_start": {"phases": []}}
    update, step, updates = Learner.update, HFEngine._step, 0

    def counted(self: Learner, *args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal updates
        updates += 1
        return update(self, *args, **kwargs)

    def fails(self: HFEngine) -> list[tuple[int, bool]]:
        if updates == 3:
            raise error
        return step(self)

    monkeypatch.setattr(Learner, "update", counted)
    monkeypatch.setattr(HFEngine, "_step", fails)
    with pytest.raises(EngineError, match=f"{said}.*train goes on with --resume") as told:
        run(validate(tree), tmp_path / "run", None, ProgressDisplay())
    assert "\n" not in str(told.value)
    assert str(told.value).count("goes on with --resume") == 1
    monkeypatch.setattr(HFEngine, "_step", step)
    kept = newest(tmp_path / "run")
    assert kept is not None
    assert kept.name.endswith("2")
    slots: list[int] = []
    whole = HFEngine._admit
    monkeypatch.setattr(HFEngine, "_admit", lambda self: (slots.append(len(self._active)), whole(self))[1])
    run(validate(tree | {"engine": {"hf": {"concurrency": 3}}}), tmp_path / "run", kept, ProgressDisplay())
    assert newest(tmp_path / "run").name.endswith("6")
    assert set(slots) == {3}


@pytest.mark.parametrize("command", ["eval", "chat", "distill"])
@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (FULL, "out of memory (CUDA out of memory): {} does not fit: make room (nvidia-smi), take a smaller model"),
        (too_much, "out of memory (DefaultCPUAllocator: can't allocate memory"),
        (GONE, "the GPU failed (CUDA error: unspecified launch failure): nvidia-smi says"),
    ],
)
def test_a_model_that_the_device_cannot_take_is_one_line_in_every_command(
    command: str, fails: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_model(tmp_path / "model", "qwen3")
    monkeypatch.chdir(tmp_path)

    def load(*args: object, **kwargs: object) -> None:
        if isinstance(fails, RuntimeError):
            raise fails
        fails()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    capsys.readouterr()  # transformers' progress while the model was written
    more = [] if command == "chat" else ["--data", "reasoning-gym:gcd"]
    assert main([command, str(tmp_path / "model"), *more]) == 2
    told = capsys.readouterr().err.strip()
    assert said.format(tmp_path / "model") in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "error",
    [GONE, RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`")],
)
def test_a_gpu_that_fails_in_the_middle_leaves_a_run_to_go_on_with(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: the learner's update says what torch says when a device is gone."""
    config = validate(tomllib.loads(TINY.read_text()) | {"cold_start": {"phases": []}})
    whole, calls = Learner.update, iter(range(9))

    def update(self: Learner, *args: Any, **kwargs: Any) -> dict[str, float]:
        if next(calls) == 3:
            raise error
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(UserError, match=r"the GPU failed \(CUDA error: .*goes on with --resume") as told:
        run(config, tmp_path / "run", None, ProgressDisplay())
    monkeypatch.setattr(Learner, "update", whole)
    assert "\n" not in str(told.value)
    kept = newest(tmp_path / "run")
    assert kept is not None
    assert kept.name.endswith("2")
    run(config, tmp_path / "run", kept, ProgressDisplay())
    assert newest(tmp_path / "run").name.endswith("6")


@pytest.mark.parametrize("error", [EngineError("CUDA error, so: …"), SandboxError("fork: Cannot allocate memory: …")])
def test_an_error_that_has_its_remedy_gets_no_other(error: RuntimeError) -> None:
    with pytest.raises(type(error), match=f"^{error}$"), device_told("take less"):
        raise error


def test_what_a_program_does_wrong_is_not_blamed_on_the_gpu() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), device_told("take less"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_remedy_that_is_taken_is_not_advised_again() -> None:
    config = LearnerConfig(gradient_checkpointing=True, max_tokens_per_batch=1000, logits_chunk=512)
    said = r"max_tokens_per_batch = 500, or learner.logits_chunk = 128$"
    with pytest.raises(UserError, match=said), memory_advice(config):
        exhausted()


T4, V100, RTX_3090, H100 = (7, 5), (7, 0), (8, 6), (9, 0)  # compute capabilities


def cards(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """What the driver says of GPUs that are not here; the first is the current one. All can emulate bfloat16."""

    def properties(device: Any = None) -> SimpleNamespace:
        major, minor = capabilities[getattr(device, "index", device) or 0]
        return SimpleNamespace(major=major, minor=minor, name="Some Card")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)


@pytest.mark.parametrize(("old", "new"), [(T4, RTX_3090), (V100, H100)])
def test_bfloat16_is_asked_of_the_device_itself_and_not_where_it_is_emulated(
    old: tuple[int, int], new: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for order, has in (((old, new, old), [False, True, False]), ((new, old, new), [True, False, True])):
        cards(monkeypatch, *order)
        devices = [torch.device("cuda", index) for index in range(3)]
        assert [has_bfloat16(device) for device in devices] == has
        assert [compute_dtype("auto", device) == torch.bfloat16 for device in devices] == has
    assert has_bfloat16(torch.device("cuda"))
    assert not has_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("card", [T4, V100])
def test_bfloat16_on_a_gpu_without_it_names_the_setting(card: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, H100, card)
    gpu = torch.device("cuda", 1)
    half = ModelConfig(dtype="bfloat16", sampler_dtype="bfloat16")
    with pytest.raises(UserError, match=r'Some Card has no bfloat16: set model.dtype = "float32"'):
        base_dtype(half, gpu)
    with pytest.raises(UserError, match=r'set model.sampler_dtype = "float32"'):
        sampler_dtype(half, gpu)
    with pytest.raises(UserError, match=r'set learner.dtype = "float32"'):
        compute_dtype("bfloat16", gpu)
    assert compute_dtype("auto", gpu) == sampler_dtype(ModelConfig(), gpu) == torch.float32
    assert base_dtype(half, torch.device("cpu")) == torch.bfloat16


def asked_of_transformers(monkeypatch: pytest.MonkeyPatch, folder: Path, dtype: str) -> dict[str, Any]:
    """What the sampler's model is loaded with; there is no such device here, so nothing more happens."""
    seen: dict[str, Any] = {}

    def load(name: str, **kwargs: Any) -> None:
        seen.update(kwargs)
        exhausted()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(UserError, match="out of memory"):
        load_for_sampling(str(folder), dtype)
    return seen


def test_a_sampler_on_a_gpu_without_bfloat16_takes_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, RTX_3090)
    assert asked_of_transformers(monkeypatch, tmp_path, "auto")["dtype"] == "auto"
    assert asked_of_transformers(monkeypatch, tmp_path, "bfloat16")["dtype"] == torch.bfloat16
    cards(monkeypatch, T4)
    assert asked_of_transformers(monkeypatch, tmp_path, "auto")["dtype"] == "float32"
    with pytest.raises(UserError, match=r'^Some Card has no bfloat16: set dtype = "float32"$'):
        load_for_sampling(str(tmp_path), "bfloat16")
    with pytest.raises(UserError, match=r'^dtype = "float61" is not supported: float32 or bfloat16$'):
        load_for_sampling(str(tmp_path), "float61")


def test_weights_are_read_straight_to_a_device_that_is_not_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: torch's device "meta" shows that transformers reads to where it is told to."""
    write_model(tmp_path, "qwen3")
    elsewhere = torch.device("meta")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, **straight_to(elsewhere))
    assert {parameter.device for parameter in read.parameters()} == {elsewhere}
    assert "device_map" not in asked_of_transformers(monkeypatch, tmp_path, "auto")  # on a CPU all is as it was
    cards(monkeypatch, H100)
    gpu = {"": torch.device("cuda")}
    assert asked_of_transformers(monkeypatch, tmp_path, "float32")["device_map"] == gpu
    monkeypatch.setattr(hf_device, "find_spec", lambda name: None)  # accelerate is an extra
    assert "device_map" not in asked_of_transformers(monkeypatch, tmp_path, "float32")
