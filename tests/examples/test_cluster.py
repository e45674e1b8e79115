"""The files of examples/cluster, as far as they can be tried without a cluster: read, and their commands checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from solostream.training.config import assign, read, validate

FOLDER = Path(__file__).parents[2] / "examples/cluster"


def settings_of(words: list[str]) -> dict[str, Any]:
    """What a command `solostream train …` asks for, checked as the command itself checks it."""
    assert words[:2] == ["solostream", "train"]
    given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    address = words[words.index("--cluster") + 1]
    config = validate(assign(read(Path(words[2])), [*given, f'cluster.address="{address}"']))
    assert words[words.index("--resume") + 1] == "auto"  # whatever starts it again, it goes on
    return config.cluster.model_dump()


def test_compose_starts_a_head_with_the_driver_and_two_machines() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert set(services) == {"head", "worker-1", "worker-2"}
    script = services["head"]["command"][-1].replace("\\\n", " ")
    stop, start, driver = (line.split() for line in script.strip().splitlines())
    assert stop == ["set", "-e"]  # without a cluster there is nothing to train on
    assert start[:3] == ["ray", "start", "--head"]
    wanted = {"learners": 1, "replicas": 2, "players": 2, "address": "head:6379", "transfer": "memory"}
    assert settings_of(driver[1:]).items() >= wanted.items()
    for worker in ("worker-1", "worker-2"):
        assert services[worker]["command"][:3] == ["ray", "start", "--address=head:6379"]
    if shutil.which("docker-compose"):
        subprocess.run(["docker-compose", "-f", FOLDER / "compose.yaml", "config", "-q"], check=True)


def test_the_job_of_kuberay_fits_the_machines_that_it_asks_for() -> None:
    job = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    asked = settings_of(job["spec"]["entrypoint"].split())
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]

    def total(of: str) -> int:
        limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
        return sum(group["replicas"] * int(limit.get(of, 0)) for group, limit in zip(groups, limits, strict=True))

    assert asked["learners"] + asked["replicas"] <= total("nvidia.com/gpu")
    assert asked["learners"] + asked["replicas"] + asked["players"] <= total("cpu")
    pinned = (FOLDER.parents[1] / "constraints.txt").read_text()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in pinned


@pytest.mark.parametrize("nodes", [["n1"], ["n1", "n2", "n3"]])
def test_the_slurm_script_starts_a_head_the_others_and_the_driver(tmp_path: Path, nodes: list[str]) -> None:
    said = tmp_path / "said"
    for name, does in {
        "scontrol": f"printf '%s\\n' {' '.join(nodes)}",
        "srun": f'echo "$@" >>{said}',
        "ray": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").touch()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-3]"}
    env |= {"SLURM_JOB_ID": "61234", "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4"}
    command = ["bash", str(FOLDER / "slurm.sh"), "quickstart", "--set", "cluster.replicas=8"]
    subprocess.run(command, env=env, check=True, timeout=60)
    deadline = time.monotonic() + 60  # the others are started in the background, and may write after the driver
    while len(lines := said.read_text().splitlines()) < 1 + len(nodes[:2]) and time.monotonic() < deadline:
        time.sleep(0.02)
    address = "n1:21234"
    driver = next(line for line in lines if "solostream" in line).split()
    assert settings_of(driver[driver.index("solostream") :])["address"] == address
    heads = [line for line in lines if "ray start --head" in line]
    joined = [line for line in lines if f"ray start --address={address}" in line]
    assert len(heads) == 1
    assert "-w n1 ray start --head --port=21234" in heads[0]
    assert len(joined) == (len(nodes) > 1)
    assert all(f"--nodes={len(nodes) - 1}" in line and "--exclude=n1" in line for line in joined)
    assert all("--num-cpus 32 --num-gpus 4" in line for line in heads + joined)
