"""The HF engine against the model's own forward over the whole ledger."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from solostream.agent.engine import Engine, EngineError, Sampling
from solostream.agent.engines.hf import HFEngine, lean
from solostream.agent.engines.hf.cache import SlotCache, feed
from solostream.agent.engines.hf.forward import ModelForward, refuse_other_attention
from solostream.agent.engines.hf.lean import LeanForward
from solostream.agent.engines.hf.sampling import _kept, sample, uniforms
from solostream.errors import UserError


async def talk(engine: Engine, seed: int, turns: int = 3, **sampling: Any) -> tuple[list[int], list[tuple[int, Any]]]:
    """An episode with ragged turns and observations: the whole ledger, and where each generation began."""
    rng = random.Random(seed)
    ids = [rng.randrange(2, 300) for _ in range(rng.randrange(3, 60))]
    parts = []
    for _ in range(turns):
        options = {"seed": seed + len(ids), **sampling}
        generation = await engine.generate(ids, Sampling(rng.randrange(5, 30), key=f"e{seed}", **options))
        parts.append((len(ids), generation))
        ids = ids + generation.token_ids + [rng.randrange(2, 300) for _ in range(rng.randrange(1, 40))]
    await engine.release(f"e{seed}")
    return ids, parts


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("decoder", ["lean, copies", "lean, in place", "the model's own"])
async def test_logprobs_are_the_models(
    family: str, decoder: str, make_model: Any, tokenizer: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 episodes over 6 slots: waiting, eviction, ragged prefill, kept caches, idle rows; every logprob."""
    if decoder == "lean, in place":
        monkeypatch.setattr(lean, "SMALL", 0)
    model = make_model(family)
    engine = HFEngine(model, tokenizer, slots=6, max_len=400)
    assert isinstance(engine._forward, LeanForward)
    assert engine._forward.in_place == (decoder == "lean, in place")
    if decoder == "the model's own":
        engine._forward = ModelForward(model)
    for ids, parts in await asyncio.gather(*(talk(engine, i, temperature=0.8) for i in range(20))):
        expected = reference[0](model, ids, 0.8)
        for start, generation in parts:
            for offset, (token, logprob) in enumerate(zip(generation.token_ids, generation.logprobs, strict=True)):
                # 320 runs of this kind: at most 4e-6. Once 1.9e-4, not explained. One wrong token cached: .01 to .7.
                assert expected[start + offset - 1, token].item() == pytest.approx(logprob, abs=5e-4)
    await engine.close()


@pytest.mark.parametrize("rows", [np.arange(40), np.r_[1:9, 12:40, 44:50]])
@pytest.mark.parametrize("fixed", [False, True])
def test_rows_in_groups_of_about_one_length_are_the_models(
    rows: np.ndarray, fixed: bool, make_model: Any, reference: Any
) -> None:
    """Rows in no order of length, in slots with and without gaps, one in eight long; fixed shapes have one group."""
    model, rng, device = make_model("qwen3"), np.random.default_rng(3), torch.device("cpu")
    lengths = rng.integers(5, 30, 50) + np.where(np.arange(50) % 8 == 3, 170, 0)
    ids, cache, forward = rng.integers(2, 300, (50, 220)), SlotCache(50, 220), LeanForward(model)
    for row in rows:
        forward(feed(ids, np.zeros(1, int), lengths[[row]], rows[rows == row], 219, 219, device), cache)
    batch = feed(ids, lengths[rows], lengths[rows] + 1, rows, 208, 219, device, fixed)
    groups = batch.by_length()
    assert len(groups) == (1 if fixed else len(rows) // 12)
    if not fixed:
        places = torch.cat([group.rows for group in groups if group.rows is not None])
        assert places.sort().values.tolist() == list(range(len(rows)))
        for group in groups:
            longest = int(lengths[rows][group.rows].max()) + 1
            assert group.n_keys == -(-longest // 16) * 16
        assert groups[0].n_keys < 32
    found = forward(batch, cache).log_softmax(-1)
    for row, of_row in zip(rows, found, strict=True):
        expected = reference[0](model, ids[row, : lengths[row] + 1].tolist())[-1]
        torch.testing.assert_close(of_row, expected.to(of_row.dtype), atol=1e-5, rtol=1e-5)


async def test_greedy_is_the_models(make_model: Any, tokenizer: Any, reference: Any) -> None:
    model = make_model()
    engine = HFEngine(model, tokenizer, slots=4)
    prompts = [[random.Random(i).randrange(2, 300) for _ in range(5 + 7 * i)] for i in range(9)]
    made = await asyncio.gather(*(engine.generate(p, Sampling(20, temperature=0)) for p in prompts))
    assert [g.token_ids for g in made] == [reference[1](model, p, 20, tokenizer.eos_token_id) for p in prompts]


async def test_a_branch_begins_with_what_its_parent_has_cached(make_model: Any, tokenizer: Any, reference: Any) -> None:
    """Beside the parent and behind it; log-probabilities are those of a ledger that was read from its start."""
    model = make_model()
    engine = HFEngine(model, tokenizer, slots=4)
    fed: list[int] = []
    forward = engine._forward

    def counting(batch: Any, cache: Any) -> torch.Tensor:
        fed.append(int((batch.columns != cache.bin_column).sum()))
        return forward(batch, cache)

    counting.device, counting.model = forward.device, forward.model  # type: ignore[attr-defined]
    engine._forward = counting  # type: ignore[assignment]
    prompt = list(range(10, 60))
    await engine.generate(prompt, Sampling(1, seed=1, key="trunk"))
    assert sum(fed) == 50
    fed.clear()
    both = (Sampling(6, seed=2, key="trunk"), Sampling(6, seed=3, key="one", parent="trunk"))
    _, branch = await asyncio.gather(*(engine.generate([*prompt, 7, 8], one) for one in both))
    assert sum(fed) == 2 * (2 + 5)  # two new tokens each, and what each sampled but for its last
    expected = reference[0](model, [*prompt, 7, 8, *branch.token_ids], 1.0)
    got = [expected[51 + i, token].item() for i, token in enumerate(branch.token_ids)]
    assert branch.logprobs == pytest.approx(got, abs=1e-4)
    fed.clear()
    other = [*prompt[:20], *range(200, 230)]  # a parent that is like it for twenty tokens only
    stray = await engine.generate(other, Sampling(1, seed=4, key="two", parent="one"))
    assert sum(fed) == 30
    assert stray.logprobs == pytest.approx([reference[0](model, other, 1.0)[49, stray.token_ids[0]].item()], abs=1e-4)
    await engine.close()


async def test_a_kept_cache_is_used_and_a_changed_prefix_is_not(
    make_model: Any, tokenizer: Any, reference: Any
) -> None:
    engine = HFEngine(make_model(), tokenizer, slots=2)
    fed: list[int] = []
    forward = engine._forward

    def counting(batch: Any, cache: Any) -> torch.Tensor:
        fed.append(int((batch.columns != cache.bin_column).sum()))
        return forward(batch, cache)

    counting.device, counting.model = forward.device, forward.model  # type: ignore[attr-defined]
    engine._forward = counting  # type: ignore[assignment]
    prompt = list(range(10, 60))
    first = await engine.generate(prompt, Sampling(8, seed=1, key="a"))
    assert sum(fed) == 50 + len(first.token_ids) - 1
    fed.clear()
    more = prompt + first.token_ids + [7, 8, 9]
    await engine.generate(more, Sampling(1, seed=1, key="a"))
    assert sum(fed) == 4  # the last sampled token and three new ones
    fed.clear()
    changed = [*more[:20], 5, *more[21:]]
    again = await engine.generate(changed, Sampling(1, temperature=0, key="a"))
    assert sum(fed) == len(changed) - 20
    assert again.token_ids == reference[1](forward.model, changed, 1, -1)


async def test_neighbours_do_not_change_what_is_sampled(make_model: Any, tokenizer: Any) -> None:
    """Reproducible mode: alone or among 11 others in any order, the same tokens and bit-equal logprobs."""
    model = make_model()
    alone = HFEngine(model, tokenizer, slots=12, max_len=400, reproducible=True)
    expected = [await talk(alone, i) for i in range(12)]
    crowd = HFEngine(model, tokenizer, slots=12, max_len=400, reproducible=True)
    order = random.Random(3).sample(range(12), 12)
    found = dict(zip(order, await asyncio.gather(*(talk(crowd, i) for i in order)), strict=True))
    assert [found[i] for i in range(12)] == expected


async def test_new_weights_reach_requests_in_flight(make_model: Any, tokenizer: Any, reference: Any) -> None:
    """Tokens before the sync have the old policy's logprobs and version, those after it the new one's, exactly."""
    old, new = make_model(seed=0), make_model(seed=1)
    engine = HFEngine(make_model(seed=0), tokenizer, slots=4, max_len=512)
    requests = [
        asyncio.ensure_future(engine.generate([5 + i] * 9, Sampling(150, temperature=2.0, seed=i))) for i in range(4)
    ]
    for _ in range(200):
        await asyncio.sleep(0)
    await engine.load_weights(new.state_dict(), 7)
    assert engine.version == 7
    seen = set()
    for i, generation in enumerate(await asyncio.gather(*requests)):
        ids = [5 + i] * 9 + generation.token_ids
        tables = {0: reference[0](old, ids, 2.0), 7: reference[0](new, ids, 2.0)}
        assert generation.versions == sorted(generation.versions)
        seen |= set(generation.versions)
        for offset, (token, logprob, version) in enumerate(
            zip(generation.token_ids, generation.logprobs, generation.versions, strict=True)
        ):
            assert tables[version][8 + offset, token].item() == pytest.approx(logprob, abs=1e-4)
    assert seen == {0, 7}
    await engine.load_weights(old.state_dict(), 8)
    there_and_back = await engine.generate([5] * 9, Sampling(30, temperature=0))
    assert there_and_back.token_ids == reference[1](old, [5] * 9, 30, tokenizer.eos_token_id)
    assert set(there_and_back.versions) == {8}


async def test_weights_that_do_not_fit_change_nothing(make_model: Any, tokenizer: Any) -> None:
    engine = HFEngine(make_model(), tokenizer, slots=1)
    before = await engine.generate([9, 8, 7], Sampling(12, seed=4))
    state = dict(make_model(seed=1).state_dict())
    missing = {name: value for name, value in state.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(UserError, match=r"1 are missing \(model.layers.1.mlp.up_proj.weight\)"):
        await engine.load_weights(missing, 1)
    with pytest.raises(UserError, match="unknown to the model"):
        await engine.load_weights({**state, "other": state["model.norm.weight"]}, 1)
    with pytest.raises(UserError, match="another shape"):
        await engine.load_weights({**state, "model.norm.weight": torch.ones(3)}, 1)
    assert await engine.generate([9, 8, 7], Sampling(12, seed=4)) == before
    assert engine.version == 0


async def test_stop_strings_end_exactly_where_they_complete(make_model: Any, tokenizer: Any) -> None:
    """The output holds the stop string, and without its last token does not; whatever the tokens' borders are."""
    engine = HFEngine(make_model(), tokenizer, slots=16)
    stops = ("e", "in", "})", "\n ", "数")
    made = await asyncio.gather(
        *(engine.generate([3 + i, 40], Sampling(120, temperature=3.0, stop=stops, seed=i)) for i in range(64))
    )
    ended = [g for g in made if g.finish == "stop" and g.token_ids[-1] != tokenizer.eos_token_id]
    assert len(ended) > 20
    for generation in ended:
        assert any(s in tokenizer.decode(generation.token_ids) for s in stops)
    for generation in made:
        assert not any(s in tokenizer.decode(generation.token_ids[:-1]) for s in stops)


async def test_stop_ids_length_and_the_models_context(make_model: Any, tokenizer: Any) -> None:
    engine = HFEngine(make_model(), tokenizer, slots=2, max_len=40)
    cut = await engine.generate([5] * 30, Sampling(100, seed=0, temperature=0.0))
    assert (len(cut.token_ids) == 10) == (cut.finish == "length")
    token = cut.token_ids[2]
    stopped = await engine.generate([5] * 30, Sampling(100, temperature=0.0, stop_token_ids=(token,)))
    assert stopped.token_ids == cut.token_ids[: cut.token_ids.index(token) + 1]
    assert stopped.finish == "stop"
    with pytest.raises(UserError, match="a prompt of 40 tokens does not fit a context of 40"):
        await engine.generate([5] * 40, Sampling(1))
    with pytest.raises(UserError, match="max_tokens"):
        await engine.generate([5], Sampling(0))


async def test_cancelling_frees_the_slot_and_closing_ends_what_waits(make_model: Any, tokenizer: Any) -> None:
    engine = HFEngine(make_model(), tokenizer, slots=1, max_len=512)
    first = asyncio.ensure_future(engine.generate([5, 6], Sampling(500, temperature=5.0, seed=1)))
    second = asyncio.ensure_future(engine.generate([7, 8], Sampling(3, seed=2)))
    await asyncio.sleep(0)
    first.cancel()
    assert len((await second).token_ids) <= 3
    third = asyncio.ensure_future(engine.generate([5, 6], Sampling(500, temperature=5.0, seed=3)))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await third
    with pytest.raises(EngineError, match="closed"):
        await engine.generate([5], Sampling(1))
    await engine.close()


async def test_a_failing_model_is_reported_to_everyone_who_waits(make_model: Any, tokenizer: Any) -> None:
    engine = HFEngine(make_model(), tokenizer, slots=2)
    engine._forward = ModelForward(engine._forward.model)
    engine._forward.model.model.layers[0].mlp.gate_proj = torch.nn.Linear(3, 3)
    failures = await asyncio.gather(
        *(engine.generate([5, i], Sampling(4)) for i in range(2, 5)), return_exceptions=True
    )
    assert all(isinstance(f, EngineError) and "the hf engine failed" in str(f) for f in failures)


def test_one_engine_serves_one_event_loop_after_another(make_model: Any, tokenizer: Any) -> None:
    engine = HFEngine(make_model(), tokenizer, slots=1)
    first, second = (asyncio.run(engine.generate([5, 6], Sampling(9, seed=1))) for _ in range(2))
    assert first == second


def test_sliding_windows_are_refused(make_model: Any, tokenizer: Any) -> None:
    model = make_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(UserError, match=r"full attention only.*vllm:PATH"):
        HFEngine(model, tokenizer)


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        ("Mistral", {"sliding_window": 4096}, "mistral has a sliding window"),
        ("Phi3", {"sliding_window": 2047}, "phi3 has a sliding window"),
        ("Gemma2", {}, "gemma2 has sliding_attention"),
        ("Gemma3", {}, "gemma3_text has sliding_attention"),  # with a vision tower: its text part decides
        ("GptOss", {}, "gpt_oss has sliding_attention"),
        ("Qwen3_5Text", {}, "qwen3_5_text has linear_attention"),
        ("FalconH1", {}, "falcon_h1 has hybrid"),
        ("Mistral", {"sliding_window": None}, None),
        ("Llama", {}, None),
    ],
)
def test_windows_and_states_are_refused_in_a_line_that_names_vllm(
    kind: str, options: dict[str, Any], found: str | None
) -> None:
    config = getattr(transformers, f"{kind}Config")(**options)
    if found is None:
        refuse_other_attention(config)
        return
    with pytest.raises(UserError) as refused:
        refuse_other_attention(config)
    assert found in str(refused.value)
    assert "--engine vllm" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_uniform_numbers_are_uniform_and_depend_on_both_arguments() -> None:
    seeds, counters = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64))
    numbers = uniforms(seeds.ravel(), counters.ravel())
    assert 0 <= numbers.min() < 1e-3
    assert 0.999 < numbers.max() < 1
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 4500) ** 2 / 4500).sum() < 45  # chi-squared, 19 degrees: p ≈ 0.001
    grid = numbers.reshape(300, 300)
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.01


def test_sampling_by_hand() -> None:
    """p = (.5, .3, .2): u = .79 is token 1, .81 token 2; filters renormalise; greedy ignores u."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(6, 3)
    tokens, logprobs = sample(
        logits,
        uniform=torch.tensor([0.79, 0.81, 0.99, 0.99, 0.99, 0.7]),
        temperature=torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.5]),
        top_k=torch.tensor([0, 0, 2, 0, 0, 0]),
        top_p=torch.tensor([1.0, 1.0, 1.0, 0.5, 1.0, 1.0]),
    )
    assert tokens.tolist() == [1, 2, 1, 0, 0, 1]
    # row 5: p² normalised = (25, 9, 4)/38; 0.7 lies above 25/38 = 0.658
    assert logprobs.exp().tolist() == pytest.approx([0.3, 0.2, 0.3 / 0.8, 1.0, 0.5, 9 / 38], abs=1e-6)


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    logits = torch.full((4, 9), -torch.inf)
    logits[:, 4] = 0.0
    ones = torch.ones(4)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-23, 2**-23])
    tokens, logprobs = sample(logits, uniform, ones, torch.zeros(4, dtype=torch.int64), ones)
    assert tokens.tolist() == [4] * 4
    assert logprobs.tolist() == [0.0] * 4


@pytest.mark.parametrize("vocabulary", [50, 3000])  # below and above what is sorted at first
@pytest.mark.parametrize("step", [0.0, 0.5])  # > 0: many logits are equal
def test_what_top_k_and_top_p_keep_is_what_they_are_defined_to_keep(vocabulary: int, step: float) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    for spread in (0.3, 1.0, 4.0):
        logits = torch.randn(9, vocabulary, generator=generator) * spread
        if step:
            logits = (logits / step).round() * step
        top_k = torch.tensor([0, 0, 1, 7, 60, 7, 2000, 60, 0])
        top_p = torch.tensor([1.0, 0.37, 1.0, 1.0, 0.81, 0.22, 0.93, 1.0, 0.97])
        keep = _kept(logits, top_k, top_p)
        for row in range(len(logits)):
            order = sorted(range(vocabulary), key=lambda i: (-logits[row, i].item(), i))
            kept = int(keep[row].sum())
            assert set(keep[row].nonzero().flatten().tolist()) == set(order[:kept])  # the largest, in a fixed order
            among = order[: int(top_k[row]) or vocabulary]
            mass = logits[row, among].double().softmax(-1).cumsum(-1)
            p = float(top_p[row])
            if p == 1:
                assert kept == len(among)
            else:
                assert mass[kept - 1] >= p - 1e-5
                assert kept == 1 or mass[kept - 2] < p + 1e-5
