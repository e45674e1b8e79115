"""docker-compose.yml, started and used as a reader of the documentation would."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from solostream.sandbox.docker.hardening import seccomp_profile
from solostream.sandbox.interpreter import Interpreter

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[3]
PROJECT = "solostream-test"


def output(*command: str, **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def compose_command() -> tuple[list[str], dict[str, str]]:
    """Version 2 if it is there; 1.29 does not know `systempaths`."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"], {}
    if shutil.which("docker-compose") is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs docker compose or docker-compose")
        pytest.skip("neither docker compose nor docker-compose is installed")
    return ["docker-compose"], {"SOLOSTREAM_SYSTEMPATHS": "no-new-privileges:true"}


def test_its_seccomp_profile_is_the_backends():
    profile = json.loads((ROOT / "sandbox" / "image" / "seccomp.json").read_text())
    ours = json.loads(seccomp_profile())
    assert {**profile, "architectures": None} == {**ours, "architectures": None}


def test_the_viewer_profile_lists_the_runs_that_are_there_and_those_that_come(image, tmp_path):
    command, extra = compose_command()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = tmp_path / "runs"
    for name in ("first", "later"):
        (runs / name).mkdir(parents=True)
    (runs / "first" / "config.toml").touch()
    runs.chmod(0o755)
    extra |= {"SOLOSTREAM_VIEWER_PORT": str(port), "SOLOSTREAM_RUNS": str(runs)}
    project = f"{PROJECT}-viewer"

    def listed():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/runs", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None

    def names():
        return [run["name"] for run in listed() or []]

    try:
        output(*command, "-p", project, "--profile", "viewer", "up", "-d", "--no-build", "viewer", **extra)
        end = time.monotonic() + 60
        while names() != ["first"]:
            assert time.monotonic() < end, output(*command, "-p", project, "--profile", "viewer", "logs", **extra)
            time.sleep(0.2)
        (runs / "later" / "config.toml").touch()
        assert names() == ["first", "later"]
        # What only its owner may read is told, and keeps nobody from the others; to its owner it is shown.
        for private in (runs / "first" / "config.toml", runs / "first" / "trajectories.jsonl"):
            private.write_text("")
            private.chmod(0o600)
        (runs / "later").chmod(0o700)
        up = [
            *command,
            "-p",
            project,
            "--profile",
            "viewer",
            "up",
            "-d",
            "--no-build",
            "--force-recreate",
            "-t",
            "1",
            "viewer",
        ]
        for user, shown in (
            ("65534:65534", {"first": True}),
            (f"{os.getuid()}:{os.getgid()}", {"first": False, "later": False}),
        ):
            output(*up, **extra, SOLOSTREAM_USER=user)
            end = time.monotonic() + 60
            while (found := listed()) is None or {run["name"]: bool(run["trouble"]) for run in found} != shown:
                assert time.monotonic() < end, (user, found)
                time.sleep(0.2)
    finally:
        output(*command, "-p", project, "--profile", "viewer", "down", "-t", "1", **extra)


def test_the_server_answers_on_loopback_and_runs_code(image):
    command, extra = compose_command()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    extra |= {"SOLOSTREAM_SANDBOX_PORT": str(port), "SOLOSTREAM_SANDBOX_TOKEN": "t0ken"}
    ours = f"label=com.docker.compose.project={PROJECT}"
    try:
        output(*command, "-p", PROJECT, "up", "-d", "--no-build", "sandbox", **extra)
        name = output("docker", "ps", "-q", "--filter", ours)
        health = f"docker inspect -f '{{{{.State.Health.Status}}}}' {name}"
        output("timeout", "120", "sh", "-c", f"until [ $({health}) = healthy ]; do sleep 0.2; done")
        with Interpreter(f"http://127.0.0.1:{port}", token="t0ken") as py:
            assert py.run("x = 6 * 7\nx").result == "42"
            assert py.run("print(x)").stdout == "42\n"
            assert py.run("import socket\nsocket.create_connection(('127.0.0.1', 8080), 2)").status == "error"
        assert output("docker", "port", name) == f"8080/tcp -> 127.0.0.1:{port}"
    finally:
        output(*command, "-p", PROJECT, "down", "-t", "1", **extra)
    assert output("docker", "ps", "-aq", "--filter", ours) == ""
