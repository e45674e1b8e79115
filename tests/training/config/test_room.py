"""What memory there is for a run, of the machine and of its container, and what is said where it is too little."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from solostream.training.config import load, validate
from solostream.training.config.dry_run import exceeds
from solostream.training.config.memory import room
from solostream.training.run.progress import ProgressDisplay
from solostream.training.run.trainer import Trainer

MIB = 1 << 20
TINY = Path(__file__).parents[1] / "run" / "tiny.toml"


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, groups: dict[str, dict[str, str]]) -> None:
    """Of 900 MiB, 700 of them available. groups: folder below /sys/fs/cgroup -> its files."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(
        f"MemTotal: {900 << 10} kB\nMemAvailable: {700 << 10} kB\nHugePages_Total: 0\n"
    )
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, files in groups.items():
        (folder / "cgroup" / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / "cgroup" / name / file).write_text(text)
    monkeypatch.setattr(room, "PROC", folder / "proc")
    monkeypatch.setattr(room, "GROUPS", folder / "cgroup")


def v2(limit: int | str, used: int, inactive: int) -> dict[str, str]:
    limit = limit if isinstance(limit, str) else str(limit * MIB)
    stat = f"anon 5\nactive_file 77\ninactive_file {inactive * MIB}\nslab 3\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used * MIB}\n", "memory.stat": stat}


def v1(limit: int, used: int, inactive: int) -> dict[str, str]:
    stat = f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive * MIB}\n"
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used * MIB}\n",
        "memory.stat": stat,
    }


@pytest.mark.parametrize(
    ("cgroup", "groups", "free", "total"),
    [
        ("0::/\n", {}, 700, 900),
        ("0::/\n", {"": v2("max", 300, 10)}, 700, 900),
        ("0::/\n", {"": v2(500, 300, 110)}, 310, 500),  # a container; 110 of the 300 are a cache
        ("0::/\n", {"": v2(5000, 300, 110)}, 700, 900),  # a limit above what there is
        ("0::/\n", {"": v2(200, 230, 10)}, 0, 200),
        ("0::/box/own\n", {"box/own": v2("max", 40, 0), "box": v2(400, 100, 20), "": {}}, 320, 400),  # of a parent
        ("0::/box/own\n", {"box/own": v2(600, 40, 0), "box": v2(400, 100, 20)}, 320, 400),
        ("0::/../../docker/abc\n", {"": v2(500, 300, 110)}, 310, 500),  # the host's path, seen from inside
        ("4:cpu:/x\n9:memory:/docker/abc\n", {"memory": v1(450 * MIB, 200, 30)}, 280, 450),
        ("9:memory:/job\n", {"memory/job": v1(350 * MIB, 200, 30), "memory": v1(0x7FFFFFFFFFFFF000, 600, 0)}, 180, 350),
    ],
)
def test_what_a_control_group_leaves(
    cgroup: str, groups: dict, free: int, total: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, cgroup, groups)
    assert room.available("cpu") == (free * MIB, total * MIB)


def test_a_plan_above_what_is_free_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not refused: the longest episodes may never come."""
    tree = tomllib.loads(TINY.read_text())
    said: list[str] = []
    monkeypatch.setattr(ProgressDisplay, "say", lambda self, text: said.append(text))
    for free, lines in ((60 << 30, 0), (300 * MIB, 1)):
        monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device, free=free: (free, 64 << 30))
        Trainer(validate(tree), tmp_path / str(free))
        warned = [text for text in said if text.startswith("memory: the plan takes ≤ ")]
        assert len(warned) == lines
    assert "on cpu, and 300 MiB of 64 GiB are free: " in warned[0]
    assert warned[0].endswith("; take a smaller model, or a larger device")
    assert "\n" not in warned[0]


def test_what_would_fit_is_said_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Path(__file__).parent / "shapes" / "Qwen3-0.6B"
    config = load(Path("own-data"), [f"model.path={shape}", "learner.max_tokens_per_batch=1024"])
    monkeypatch.setattr("solostream.training.config.dry_run.available", lambda device: (27 << 30, 64 << 30))
    assert "; set engine.hf.concurrency = 12, or " in f"{exceeds(config, 'cpu')}, or "
    assert exceeds(config.model_copy(update={"engine": {"hf": {"concurrency": 3}}}), "cpu") == ""
