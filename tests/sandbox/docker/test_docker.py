"""The `docker` backend against a real daemon."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import get_args

import pytest

from solostream.sandbox import SandboxError, UserError
from solostream.sandbox.conformance import check
from solostream.sandbox.docker import DockerSandbox, frames, hardening
from solostream.sandbox.docker.sandbox import RunningContainer
from solostream.sandbox.types import Claim, Limits

pytestmark = pytest.mark.docker
LIMITS = Limits(timeout_s=20, memory_mb=256, processes=32, disk_mb=16, open_files=128, output_bytes=4096)


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def containers(owner: int) -> list[str]:
    return docker("ps", "-aq", "--no-trunc", "--filter", f"label=solostream.owner={owner}").split()


async def gone(owner: int) -> bool:
    """Whether the owner's containers end within a few seconds."""
    for _ in range(100):
        if not containers(owner):
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.fixture
async def sandbox(image):
    box = DockerSandbox(limits=LIMITS, preimport=())
    yield box
    await box.close()
    assert containers(os.getpid()) == []


async def test_it_holds_every_promise(image):
    report = await check("docker", jobs=4)
    assert [(case.name, case.detail) for case in report.failed] == []
    assert sum(case.status == "pass" for case in report.cases) >= 100


async def test_sessions_share_one_container_and_nothing_else(sandbox):
    first, second = await sandbox.open(), await sandbox.open()
    assert len(containers(os.getpid())) == 1
    assert first.isolation.startswith("container+namespaces+seccomp+landlock")
    await first.run("secret = 1\nopen('/tmp/f', 'w').write('x')")
    seen = await second.run("import os\n('secret' in dir(), os.path.exists('/tmp/f'), len(os.listdir('/proc')) < 80)")
    assert seen.result == "(False, False, True)"


async def test_the_container_is_hardened(sandbox):
    await sandbox.open()
    (name,) = containers(os.getpid())
    (about,) = json.loads(docker("inspect", name))
    host = about["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["Init"] is True
    assert host["AutoRemove"] is True
    assert host["LogConfig"]["Type"] == "none"
    assert host["Memory"] == host["MemorySwap"] == 4096 << 20
    assert host["PidsLimit"] == 4096
    assert about["Config"]["User"] == "65534:65534"
    assert [(mount["Destination"], mount["RW"]) for mount in about["Mounts"]] == [("/connection", False)]
    status = docker("exec", name, "cat", "/proc/self/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert docker("exec", name, "ls", "-A", "/connection") == ""  # the way in is gone
    for family, number in (("AF_VSOCK", 97), ("AF_ALG", 97)):
        code = f"import socket\ntry: socket.socket(socket.{family})\nexcept OSError as e: print(e.errno)"
        assert docker("exec", name, "python", "-c", code) == str(number)


async def test_no_trace_is_left_in_the_hosts_temporary_folder(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    await (await sandbox.open()).run("open('/tmp/x', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []


async def test_a_container_that_dies_is_an_infrastructure_failure_and_is_replaced(sandbox):
    session = await sandbox.open()
    running = asyncio.create_task(session.run("import time\ntime.sleep(15)"))
    await asyncio.sleep(0.3)
    docker("kill", *containers(os.getpid()))
    with pytest.raises(SandboxError, match=r"ended|lost"):
        await running
    with pytest.raises(SandboxError):
        await session.run("1")
    await session.close()
    assert (await (await sandbox.open()).run("6 * 7")).result == "42"


async def test_a_container_is_recycled_after_its_share_of_sessions(image):
    box = DockerSandbox(limits=LIMITS, preimport=(), recycle_after=2)
    try:
        first, second = await box.open(), await box.open()
        third = await box.open()
        assert len(containers(os.getpid())) == 2
        assert (await first.run("1")).result == (await third.run("1")).result == "1"
        await first.close()
        await second.close()
        assert len(containers(os.getpid())) == 1
        assert (await third.run("2")).result == "2"
    finally:
        await box.close()
    assert containers(os.getpid()) == []


async def test_a_session_may_not_hold_more_memory_than_its_limit_in_many_processes(sandbox):
    session, other = await sandbox.open(), await sandbox.open()
    await other.run("kept = 1")
    code = """
import os, time
for _ in range(4):
    if not os.fork():
        hold = bytearray(100 << 20)
        time.sleep(30)
        os._exit(0)
time.sleep(15)
"""
    seen = await session.run(code)
    assert seen.status == "memory"
    assert not seen.state_kept
    assert (await other.run("kept")).result == "1"


async def test_a_crash_rolls_back_to_the_snapshot(image):
    box = DockerSandbox(limits=LIMITS, preimport=(), snapshot=True)
    try:
        session = await box.open()
        await session.run("x = 1")
        seen = await session.run("x = 2\nimport os\nos._exit(0)")
        assert (seen.status, seen.state_kept) == ("killed", True)
        assert (await session.run("x")).result == "1"
    finally:
        await box.close()


async def test_a_killed_owner_leaves_nothing(image):
    code = """
import asyncio, os
from solostream.sandbox.docker import DockerSandbox
async def main():
    session = await DockerSandbox(preimport=()).open()
    print("ready", flush=True)
    await session.run("while True: pass", timeout=60)
asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    assert len(containers(owner.pid)) == 1
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert await gone(owner.pid)


async def test_containers_of_dead_owners_are_reaped_and_others_are_not(sandbox, image):
    dead = {**hardening.owner_labels(), hardening.LABEL: "1", hardening.LABEL_START: "never"}
    foreign = {**dead, hardening.LABEL_HOST: "another machine"}

    def start(labels: dict[str, str]) -> str:
        marks = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
        return docker("run", "-d", "--network", "none", *marks, image, "sleep", "60")

    left, others = start(dead), start(foreign)
    try:
        await sandbox.open()
        running = docker("ps", "-q", "--no-trunc").split()
        assert left not in running
        assert others in running
    finally:
        docker("rm", "-f", others)


async def test_a_missing_image_names_the_remedy():
    box = DockerSandbox(image="solostream-no-such-image")
    with pytest.raises(UserError, match=r"missing; build it: scripts/build-image-offline\.sh") as error:
        await box.open()
    assert "\n" not in str(error.value)
    await box.close()


async def test_a_missing_daemon_names_the_remedy(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    box = DockerSandbox()
    with pytest.raises(UserError, match=r"start one: scripts/start-dockerd\.sh"):
        await box.open()
    await box.close()


async def test_an_image_without_the_server_is_reported_with_its_last_words(image):
    docker("tag", docker("images", "-q", "solostream-base:bookworm"), "solostream-test-bare")
    box = DockerSandbox(image="solostream-test-bare")
    try:
        with pytest.raises(SandboxError, match="python"):
            await box.open()
    finally:
        await box.close()
        docker("rmi", "solostream-test-bare")
    assert containers(os.getpid()) == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"\xff\xff\xff\xff" + b"x" * 100, "4294967295 bytes"),
        (b"\0\0\0\x04nope", "not JSON"),
        (frames.pack({"id": 77, "session": 1}), "no question"),
        (frames.pack({"session": 1}), "no question"),
        (frames.pack({"id": 1, "session": "one"}), "without a number"),
        (b"", "ended"),
    ],
)
async def test_a_hostile_server_only_breaks_itself(answer, why):
    """The far end is played by this test: what a container that was taken over could send."""

    class Nowhere:
        removed = 0

        def remove(self, name: str) -> None:
            self.removed += 1

    async def serve(reader, writer):
        await frames.read(reader, 4096)
        writer.write(frames.pack({"protocol": frames.PROTOCOL, "isolation": "x" * 5000, "claims": []}))
        await frames.read(reader, 4096)
        writer.write(answer)
        await writer.drain()
        if not answer:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        host, port = listener.sockets[0].getsockname()
        daemon = Nowhere()
        server = RunningContainer(daemon, "name", *await asyncio.open_connection(host, port))  # type: ignore[arg-type]
        await server.greet(LIMITS, {})
        assert len(server.isolation) < 200
        box = DockerSandbox(limits=LIMITS, preimport=())
        box._current, box._servers = server, {server}
        with pytest.raises(SandboxError, match=why):
            await box.open()
        await box.close()
        assert daemon.removed


@pytest.mark.parametrize(
    ("said", "lacking"),
    [
        (["disk", "memory", "processes", "sessions", "fork"], set()),
        (["state", "filesystem", "memory", "no such claim", 7], {"disk", "processes", "sessions", "fork"}),
        ("disk memory", {"disk", "memory", "processes", "sessions", "fork"}),
    ],
)
async def test_claims_follow_the_tier_inside(said, lacking, caplog):
    """The container's own promises stay; those that each session needs namespaces for are the server's to make."""

    async def serve(reader, writer):
        await frames.read(reader, 4096)
        writer.write(frames.pack({"protocol": frames.PROTOCOL, "isolation": "seccomp+landlock7", "claims": said}))
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        pair = await asyncio.open_connection(*listener.sockets[0].getsockname())
        server = RunningContainer(None, "name", *pair)  # type: ignore[arg-type]
        await server.greet(LIMITS, {})
        assert server.claims == set(get_args(Claim)) - lacking
        words = "".join(caplog.messages)
        assert all(claim in words for claim in lacking - {"fork"})
        assert ("recycle_after=1" in words) == bool(lacking)
        assert server._listener is not None
        server._listener.cancel()
        pair[1].close()


async def test_an_image_of_another_version_is_refused():
    async def serve(reader, writer):
        await frames.read(reader, 4096)
        writer.write(frames.pack({"protocol": frames.PROTOCOL + 1}))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        pair = await asyncio.open_connection(*listener.sockets[0].getsockname())
        server = RunningContainer(None, "name", *pair)  # type: ignore[arg-type]
        with pytest.raises(SandboxError, match="build it again"):
            await server.greet(LIMITS, {})
        pair[1].close()
