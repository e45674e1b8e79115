"""Names of the Hugging Face Hub that do not come: a hub of our own answers as the real one does, one line says why."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ANSWERS = {  # owner -> (status, the Hub's code)
    "gated": (403, "GatedRepo"),
    "nobody": (401, "RepoNotFound"),
    "busy": (503, ""),
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        owner = next((owner for owner in ANSWERS if f"/{owner}/" in self.path), "nobody")
        status, code = ANSWERS[owner]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "as the hub says")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD  # noqa: N815 (the names of http.server)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("owner", ["gated", "nobody"])
@pytest.mark.parametrize("what", ["model", "data"])
def test_why_a_name_does_not_come_is_one_line(what: str, owner: str, hub: str, tmp_path: Path) -> None:
    name = f"{owner}/thing"
    words = ["eval", name] if what == "model" else ["eval", "scripted:json:loads", "--data", name]
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-m", "solostream", *words], capture_output=True, text=True, env=env,
                          cwd=tmp_path, timeout=300)  # fmt: skip
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert name in said
    assert "hf auth login" in said
    if owner == "gated":
        assert f"ask for access at https://huggingface.co/{'datasets/' if what == 'data' else ''}gated/thing" in said
    else:
        assert "no such repository, or a private one" in said


NOTEBOOK = """
import sys, solostream
from huggingface_hub.utils import _http
from solostream.envs.data import load
waits = []
_http.time.sleep = waits.append  # their pauses between two tries, in seconds
ask = {"model": lambda: solostream.evaluate("busy/thing"), "data": lambda: load("busy/thing")}[sys.argv[1]]
try:
    ask()
except solostream.errors.UserError as error:
    print(error)
print(len(waits) > 2)
try:
    _http.http_backoff("GET", sys.argv[2] + "/busy/thing", max_retries=1)  # somebody's own request is heard as before
except Exception:
    pass
"""


@pytest.mark.parametrize("what", ["model", "data"])
def test_in_a_notebook_a_busy_hub_is_one_line_too(what: str, hub: str, tmp_path: Path) -> None:
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    env.pop("HF_HUB_VERBOSITY", None)  # the command sets it, in this process too when another test has run it here
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, what, hub], capture_output=True, text=True, env=env,
                          cwd=tmp_path, timeout=300)  # fmt: skip
    said, retried = done.stdout.splitlines()
    assert "busy/thing" in said
    assert retried == "True"
    assert done.stderr.count("Retrying in") == 1, done.stderr  # of the last request
    assert done.stderr.count("thrown while requesting") == 2  # and its two tries


NO_NETWORK = """
import sys, time, solostream
from huggingface_hub import constants
from huggingface_hub.utils import _http
from solostream.agent.engines.pretrained import load_tokenizer
from solostream.envs.data import load
waits = []
_http.time.sleep = waits.append
for ask in (lambda: load_tokenizer("nobody/thing"), lambda: load("nobody/rows")):
    try:
        ask()
    except solostream.errors.UserError as error:
        print(error)
print(load_tokenizer("here/thing").encode("b a"))
print(waits, constants.is_offline_mode())
"""


def test_without_a_network_what_is_in_the_cache_loads_and_the_rest_is_told_at_once(tmp_path: Path) -> None:
    """Nobody listens at the Hub's address: no pause between tries."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"a": 5, "b": 3, "?": 0}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    kept = tmp_path / "hub" / "models--here--thing"
    snapshot = kept / "snapshots" / ("1" * 40)
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(snapshot)
    (snapshot / "config.json").write_text('{"model_type": "qwen2"}')
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("1" * 40)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{held.getsockname()[1]}", "HF_HOME": str(tmp_path),
               "HF_HUB_OFFLINE": "0", "no_proxy": "*"}  # fmt: skip
        env = {name: value for name, value in env.items() if name.lower() not in ("http_proxy", "all_proxy")}
        done = subprocess.run([sys.executable, "-c", NO_NETWORK], capture_output=True, text=True, env=env, cwd=tmp_path,
                              timeout=300)  # fmt: skip
    model, data, ids, state = done.stdout.splitlines()
    assert "hf download nobody/thing" in model
    assert "hf download --repo-type dataset nobody/rows" in data
    for line in (model, data):
        assert line.count("not in the cache, and the Hub cannot be reached") == 1
    assert ids == "[3, 5]"
    assert state == "[] False"
    assert done.stderr == ""
