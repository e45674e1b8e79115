"""What the quickstart builds before it learns: tokenizer, model, demonstrations."""

import random
from pathlib import Path

import pytest
import torch

from solostream.agent.engine import Sampling
from solostream.agent.trajectory import TokenRecord
from solostream.envs.data.arithmetic import generate
from solostream.envs.types import Grading
from solostream.errors import SandboxError, UserError
from solostream.training.config import BuildConfig, ModelConfig, load
from solostream.training.run.model import build_model, build_tokenizer, load_model
from solostream.training.run.setup import build, problems
from solostream.training.sft.cold_start import Demonstration, Demonstrations, _play, problems_of, sft_batches
from solostream.training.sft.demonstrations import FILLERS, boxed, demonstration, draw_styles, fence

TASKS = generate(200, seed=0)
TINY = Path(__file__).parents[1] / "run" / "tiny.toml"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([t.prompt + fence(t.meta["code"]) for t in TASKS], 640)


def test_any_text_round_trips_and_digits_stand_alone(tokenizer) -> None:
    for text in ("12345 + 67", "naïve 🐍 \x00 \n\n  x", fence("x=1\nx") + boxed(-3)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("903*41"))
    assert pieces == ["9", "0", "3", "*", "4", "1"]
    assert len(tokenizer.encode("```python\n")) == len(tokenizer.encode("\\boxed{")) == 1
    assert len(tokenizer) <= 640


def test_chat_template_is_chatml(tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_built_model_is_seeded_and_loads_back(tokenizer, tmp_path) -> None:
    shape = BuildConfig(hidden_size=32, layers=1, heads=2, kv_heads=1, mlp_size=64)
    first, again, other = (build_model(shape, tokenizer, seed) for seed in (0, 0, 1))
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert same(first, again)
    assert not same(first, other)
    first.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, tokens = load_model(ModelConfig(path=str(tmp_path)))
    assert same(first, loaded)
    assert tokens.encode("12") == tokenizer.encode("12")
    assert tokens.chat_template == tokenizer.chat_template


def test_unknown_model_path_is_one_line() -> None:
    with pytest.raises(UserError, match=r'model\.path = "no/such/model"') as error:
        load_model(ModelConfig(path="no/such/model"))
    assert "\n" not in str(error.value)


def test_styles_behave_as_they_are_called() -> None:
    rng = random.Random(0)
    for task in TASKS:
        code = task.meta["code"]
        assert demonstration(task, "early", rng) == [fence(code), boxed(task.answer)]
        late = demonstration(task, "late", rng)
        assert late[0].endswith(fence(code))
        assert late[0].startswith(FILLERS)
        (guess,) = demonstration(task, "guess", rng)
        assert "```" not in guess
        bug = demonstration(task, "bug", rng)
        assert bug[0] == fence(code[:-1])
        assert bug[1] == fence(code) or bug[1] != boxed(task.answer)


def test_styles_are_drawn_with_the_probabilities_of_the_mix() -> None:
    drawn = draw_styles(10_000, {"early": 3.0, "guess": 1.0}, random.Random(0))
    assert set(drawn) == {"early", "guess"}
    assert abs(drawn.count("early") / 10_000 - 0.75) < 0.02


def shown(cold_start: str, seed: int = 0) -> list[list[str]]:
    settings = (f"run.seed={seed}", *(f"cold_start.{setting}" for setting in cold_start.split(";")))
    return [[demonstration.seed for demonstration in batch] for batch in sft_batches(load(TINY, settings))]


def test_each_epoch_shows_the_demonstrations_of_its_phase_again_in_another_order() -> None:
    two = "phases=[{steps=7,epochs=%d,mix={early=1.0}},{steps=4,epochs=2,mix={guess=1.0}}];batch=5"
    batches = shown(two % 3)
    assert [len(batch) for batch in batches] == [5] * 11
    flat = [name for batch in batches for name in batch]
    first, second = flat[:35], flat[35:]
    fresh = first[:15]  # a third of seven batches, rounded up
    assert len(set(fresh)) == 15
    assert sorted(first[15:30]) == sorted(fresh)
    assert first[15:30] != fresh
    assert set(first[30:]) < set(fresh)  # the third epoch is cut short
    assert len(set(first[30:])) == 5
    assert sorted(second[10:]) == sorted(second[:10])
    assert not set(first) & set(second)

    # The first epoch is what a single one begins with, and another seed shows others.
    assert shown(two % 1)[:3] == batches[:3]
    assert not set(fresh) & {name for batch in shown(two % 3, seed=1) for name in batch}


async def test_what_an_epoch_shows_again_is_not_played_again(tmp_path) -> None:
    settings = [f"run.root={tmp_path}", "cold_start.phases=[{steps=12,epochs=2,mix={early=0.5,bug=0.5}}]"]
    config = load(TINY, [*settings, "cold_start.batch=3"])
    batches = sft_batches(config)
    parts = build(config, *problems(config), problems_of(batches))
    played: dict[str, list[int]] = {}
    shown = [sequences async for _, sequences in Demonstrations(config, parts, batches).batches(0)]
    for batch, sequences in zip(batches, shown, strict=True):
        for one, (ids, _) in zip(batch, sequences, strict=True):
            played.setdefault(one.seed, []).append(id(ids))
            assert one.task.prompt in parts.tokenizer.decode(ids)
    assert len(played) == 18
    assert all(first == second for first, second in played.values())


async def test_a_phase_that_has_learnt_enough_leaves_out_its_rest(tmp_path) -> None:
    phase = "{steps=%d,mix={early=1.0},until=0.5}"
    phases = ",".join(phase % steps for steps in (45, 37, 60))
    config = load(TINY, [f"run.root={tmp_path}", f"cold_start.phases=[{phases}]", "cold_start.batch=1"])
    batches = sft_batches(config)
    course = Demonstrations(config, build(config, *problems(config), problems_of(batches)), batches)
    shown = []
    async for step, sequences in course.batches(3):
        assert batches[step][0].task.prompt in course._parts.tokenizer.decode(sequences[0][0])
        shown.append(step)
        # The first phase: .9 up to step 9, then .3, so that the mean of 20 is .48 after step 23, and .51 before.
        # The second never learns. The third has its 20 steps to itself: what was learnt before does not count.
        course.record(step, 0.9 if step < 10 or 45 <= step < 82 else 0.3)
    # What is ahead when a phase ends is shown: three batches.
    assert shown == [*range(3, 27), *range(45, 105)]
    assert course.steps == 142


@pytest.mark.parametrize(
    ("failure", "error", "told"),
    [
        ("reward 'f' failed on task 't': ValueError: no tests", UserError, "f.*no tests.*one for these data"),
        (None, SandboxError, "demonstration of .* failed; check the sandbox"),
    ],
)
async def test_a_demonstration_without_a_reward_says_whose_fault_it_is(tokenizer, failure, error, told) -> None:
    class Pool:
        """Plays each demonstration, and has no reward for it."""

        def sampling(self, temperature):
            return Sampling(9, temperature)

        async def play(self, script, task_id, sampling, dispatch, seed):
            record = TokenRecord()
            record.add_observation("user", [1, 2], "?")
            record.add_action([3], [-0.5], [0], "!")
            return record.close(task_id, 0.0, "infra", grading=Grading(failure=failure))

    with pytest.raises(error, match=told):
        await _play(Demonstration(TASKS[0], "guess", "s"), Pool(), tokenizer)
