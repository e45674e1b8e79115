from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import pytest

from solostream.errors import UserError
from solostream.training import config as configuration
from solostream.training.config import Config, ModelConfig, assign, expand, validate
from solostream.training.config.cold_start import ColdStartConfig
from solostream.training.config.learner import LearnerConfig
from solostream.training.learner.optimizer import low_memory
from solostream.training.run import setup

ROOT = Path(__file__).parents[3]


def refusal(*settings: str) -> str:
    with pytest.raises(UserError) as caught:
        validate(assign({}, settings))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learner.lrr=1e-3", ["unknown key 'learner.lrr'", "did you mean 'lr'", "grad_clip"]),
        ("algorthm.k=0.5", ["unknown key 'algorthm'", "did you mean 'algorithm'", "rollout"]),
        ("run.engine='vlm'", ["unknown engine 'vlm'", "did you mean 'vllm'", "allowed: hf, vllm"]),
        ("engine.vlm.seed=1", ["[engine.vlm]", "did you mean 'vllm'"]),
        ("engine.server.url='http://localhost:8000'", ["engine 'server' has no option 'url'", "did you mean 'urls'"]),
        ("engine.server.urls='http://localhost:8000'", ["engine 'server': 'urls' cannot be", "valid array"]),
        ("engine.hf.slots=3", ["engine 'hf' has no option 'slots'", "allowed: graphs, concurrency"]),
        ("algorithm.advantage=sppo", ["did you mean 'spo'", "rloo"]),
        ("group_size=8", ["unknown key 'group_size'", "did you mean 'algorithm.group_size'"]),
        ("run.steps='40'", ["'run.steps' cannot be '40'", "integer"]),
        ("learner.lr=-1.0", ["'learner.lr' cannot be -1.0", "greater than or equal to 0"]),
        ("learner.lr=nan", ["'learner.lr' cannot be nan"]),
        ("algorithm.aspo.k=1.0", ["advantage 'aspo': 'k'", "less than 1"]),
        ("algorithm.k=0.5", ["unknown key 'algorithm.k'", "did you mean 'algorithm.aspo.k'"]),
        ("algorithm.start_samples=2", ["did you mean 'algorithm.tracker.start_samples'"]),
        ("algorithm.grup_size=2", ["unknown key 'algorithm.grup_size'", "did you mean 'group_size'"]),
        ("algorithm.aspo=false", ["[algorithm.aspo] is a section"]),
        ("algorithm.apso={}", ["unknown section [algorithm.apso]", "did you mean 'aspo'"]),
        ("algorithm.stages=['apso']", ["unknown advantage 'apso'", "did you mean 'aspo'"]),
        ("algorithm.stages=['grpo']", ["'grpo' is no stage"]),
        ("algorithm.aspo.deltta=1.0", ["advantage 'aspo' has no option 'deltta'", "did you mean 'delta'"]),
        ("algorithm.spo.measure='tokens'", ["advantage 'spo': 'measure' cannot be 'tokens'", "'trajectory'"]),
        ("algorithm.spo.tracker=3", ["advantage 'spo' has no option 'tracker'"]),
        ("algorithm.tracker.rho_min=0.99", ["rho_min <= rho_max"]),
        ("learner.loss=gsop", ["unknown loss 'gsop'", "did you mean 'gspo'"]),
        ("learner.clip_low=0.1", ["did you mean 'loss.ppo_clip.clip_low'"]),
        ("loss.gsop={}", ["[loss.gsop]", "did you mean 'gspo'"]),
        ("loss.gspo.clip_hi=3e-4", ["loss 'gspo' has no option 'clip_hi'", "did you mean 'clip_high'"]),
        ("loss.gspo.clip_low='3e-4'", ["loss 'gspo': 'clip_low' cannot be '3e-4'", "valid number"]),
        ("loss.clip_cov.bounds=[5.0, 1.0]", ["low < high"]),
        ("loss.ppo_clip.dual_clip=0.5", ["dual_clip = 0.5 would cut on-policy tokens"]),
        ("loss.'no_such_module:Mine'.x=1", ["there is no module 'no_such_module'", "PYTHONPATH"]),
        ("cluster.transfer='rdma'", ["'cluster.transfer' cannot be 'rdma'", "allowed: memory, nccl, ipc, gloo"]),
        ("cluster.replica=2", ["unknown key 'cluster.replica'", "did you mean 'replicas'"]),
        ("cluster.replicas=0", ["'cluster.replicas' cannot be 0"]),
        ("model=3", ["'model' is a section", "[model]", "path"]),
        ("run.trackers=['wanb']", ["unknown tracker 'wanb'", "did you mean 'wandb'"]),
        ("cold_start.phases=[{step = 3, mix = {early = 1.0}}]", ["phases.0.step'", "did you mean 'steps'"]),
        ("cold_start.phases=[{steps = 3, mix = {early = 0.5}}]", ["add up to 1, not 0.5"]),
        ("algorithm.advantage=grpo", ["'grpo' compares within groups", "group_size to 2 or more"]),
        ("algorithm.aspo.compare=group", ["'aspo' compares within groups", "group_size to 2 or more"]),
        ("algorithm.reward_range=[1.0, -1.0]", ["low < high", "[1.0, -1.0]"]),
        ("algorithm.aspo.signal=call", ["'signal' cannot be 'call'", "first_call"]),
        ("rollout.colocate=turns", ['needs rollout.mode = "sync"', "async samples while", 'colocate = "beside"']),
        ("rollout.colocate=beside", ['run.engine = "hf"', 'set it to "vllm"']),
        ("rollout.colocate=both", ["'rollout.colocate' cannot be 'both'", "allowed: no, beside, turns"]),
        ("rollout.batch=100", []),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_remedy(setting: str, words: list[str]) -> None:
    if not words:
        assert "no multiple of algorithm.group_size" in refusal(setting, "algorithm.group_size=8")
        return
    message = refusal(setting)
    for word in words:
        assert word in message


GARBAGE = ["nan", "inf", "-1", "1.5", "true", "'x'", "[]", "[2.0, 1.0]", "[nan, 1.0]", "{}", "{a = 1}", "1979-05-27"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cluster.replicas=2", ["one process and one GPU", "[cluster]"]),
        ("engine.vllm.tensor_parallel_size=2", ["one GPU", "parallel sizes of [engine.vllm]"]),
        ("model.device='cuda:1'", ["vLLM takes the first GPU", "CUDA_VISIBLE_DEVICES"]),
    ],
)
def test_one_gpu_for_both_is_one(setting: str, words: list[str]) -> None:
    message = refusal("run.engine=vllm", "rollout.colocate=beside", setting)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("key", [*Config.model_fields, *(f"learner.{name}" for name in LearnerConfig.model_fields)])
def test_garbage_is_one_line_or_a_value_that_can_be_written_down(key: str) -> None:
    for value in GARBAGE:
        said = ""
        try:
            config = validate(assign({}, [f"{key}={value}"]))
            assert not {"nan", "inf"} & set(config.to_toml().split())
            said = config.hash()
        except UserError as error:
            said = str(error)
        assert said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learner.lr='1e-3'", "valid number"),
        ("learner.num_mini_batches=true", "valid integer"),
        ("learner.grad_clip=inf", "finite"),
        ("learner.betas=[0.9, 1.0]", "less than 1"),
        ("learner.seed=1", "learner.seed"),
        ("learner.temperature=0.7", "learner.temperature"),
        ("rollout.tis_cap=2.0", "rollout.tis_cap"),
        ("learner.reject_outside=[1.0, 1.0]", "low < high"),
        ("run=1979-05-27", "'run' is a section"),
        ("env.max_turns=1979-05-27", "'env.max_turns' cannot be"),
    ],
)
def test_the_learner_is_as_strict_as_the_rest(setting: str, words: str) -> None:
    assert words in refusal(setting)


def test_set_reads_toml_values_and_bare_words() -> None:
    config = validate(assign({}, ["run.seed=3", "env.sandbox=docker", "data.levels=[1, 2]", "eval.greedy=false"]))
    assert (config.run.seed, config.env.sandbox, config.data.levels, config.eval.greedy) == (3, "docker", (1, 2), False)


def test_set_without_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="--set takes key=value"):
        assign({}, ["learner.lr"])


PHASES = {"phases": [{"steps": 3, "mix": {"early": 1.0}}]}
PLACES = {  # sections -> (optimizer, lr) of the cold start, lr of reinforcement
    "built": ({"cold_start": PHASES}, ("muon", 2e-3), 5e-4),
    "built, traces": ({"cold_start": {"data": "a.jsonl"}}, ("muon", 2e-3), 5e-4),
    "pretrained": ({"model": {"path": "a/b"}}, ("adamw", 1e-4), 1e-6),
    "pretrained, traces": ({"model": {"path": "a/b"}, "cold_start": {"data": "a.jsonl"}}, ("adamw", 1e-4), 1e-6),
    "pretrained, demonstrations": ({"model": {"path": "a/b"}, "cold_start": PHASES}, ("adamw", 1e-4), 1e-6),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("section", ["learner", "cold_start.learner"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("gradient_checkpointing", True), ("lr", 3e-5), ("optimizer", "muon"), ("optimizer", "adamw"), ("muon_lr", 0.03)],
)
def test_a_key_of_a_learner_changes_that_key_alone(place: str, section: str, key: str, value: object) -> None:
    tree, cold, rate = PLACES[place]
    before = validate(tree)
    assert (before.cold_start.learner.optimizer, before.cold_start.learner.lr) == cold
    assert (before.learner.optimizer, before.learner.lr) == ("adamw", rate)
    after = validate(assign(tree, {f"{section}.{key}": value})).model_dump()
    wanted = before.model_dump()
    (wanted["learner"] if section == "learner" else wanted["cold_start"]["learner"])[key] = value
    assert after == wanted


@pytest.mark.parametrize("place", PLACES)
def test_what_a_run_folder_keeps_is_the_same_run(place: str) -> None:
    config = validate(assign(PLACES[place][0], {"learner.logits_chunk": 77, "cold_start.learner.weight_decay": 0.03}))
    assert validate(tomllib.loads(config.to_toml())) == config


def test_sections_that_are_objects_keep_what_they_show() -> None:
    """As `solostream.train` takes them; it writes the keys that are set anew, and adds its settings."""
    shown = LearnerConfig(weight_decay=0.03)
    config = Config(learner=shown, cold_start=ColdStartConfig(data="a.jsonl"), model=ModelConfig(path="a/b"))
    assert (config.learner, config.cold_start.learner.lr) == (shown, 1e-4)
    assert Config(cold_start=ColdStartConfig(learner=shown)).cold_start.learner == shown
    assert Config(model=ModelConfig(path="a/b")).learner.lr == 1e-6
    again = validate(config.model_dump(mode="json", exclude_unset=True))
    assert (again.learner, again.cold_start, again.model) == (config.learner, config.cold_start, config.model)


def test_a_sweep_is_every_combination() -> None:
    tree = assign({"sweep": {"run": {"seed": [0, 1]}, "learner.lr": [1e-3, 1e-4]}}, [])
    runs = [(suffix, validate(made)) for suffix, made in expand(tree)]
    assert [s for s, _ in runs] == [f"-seed={s}-lr={lr}" for s, lr in itertools.product([0, 1], [1e-3, 1e-4])]
    assert [(c.run.seed, c.learner.lr) for _, c in runs] == list(itertools.product([0, 1], [1e-3, 1e-4]))
    for sweep, words in (({"run": {"seed": 3}}, "seed must be a non-empty list"), (3, "'sweep' is a section")):
        with pytest.raises(UserError, match=words):
            list(expand({"sweep": sweep}))


def test_a_swept_run_has_a_name_that_is_a_folder() -> None:
    tree = {"sweep": {"model.path": ["hub/one", "build"], "env.options": [{"answer": "tag"}, {"answer": "boxed"}]}}
    names = [suffix for suffix, _ in expand(tree)]
    assert names == [f"-path={p}-options={i}" for p, i in itertools.product(["hub_one", "build"], [0, 1])]


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    config = validate(assign({}, ["cold_start.phases=[{steps = 2, mix = {early = 0.5, guess = 0.5}}]", "run.seed=7"]))
    place = tmp_path / "config.toml"
    place.write_text(config.to_toml())
    assert configuration.load(place) == config


def test_the_hash_follows_what_shapes_the_numbers_only() -> None:
    base = Config().hash()
    same = ["run.name=other", "run.steps=99", "run.keep=5", "eval.every=3"]
    assert all(validate(assign({}, [s])).hash() == base for s in same)
    assert all(validate(assign({}, [s])).hash() != base for s in ("run.seed=1", "learner.lr=1e-4", "rollout.batch=64"))


def test_schedules_end_with_the_run() -> None:
    settings = [
        "run.steps=10",
        "learner.schedule=linear",
        "learner.num_mini_batches=2",
        "cold_start.learner.schedule=cosine",
    ]
    config = validate(assign({}, [*settings, "cold_start.phases=[{steps = 7, mix = {early = 1.0}}]"]))
    assert (config.learner.total_steps, config.cold_start.learner.total_steps) == (20, 7)


def test_a_schedule_over_traces_ends_at_the_steps_that_are_set() -> None:
    settings = ["cold_start.data=first-calls", "cold_start.phases=[]", "cold_start.learner.schedule=linear"]
    with pytest.raises(UserError, match=r"ends at total_steps: set it, or cold_start\.steps"):
        validate(assign({}, settings))
    assert validate(assign({}, [*settings, "cold_start.steps=13"])).cold_start.learner.total_steps == 13


def test_a_cold_start_without_steps_has_no_schedule() -> None:
    config = configuration.load(ROOT / "configs" / "recipes" / "quickstart.toml", ["cold_start.phases=[]"])
    assert config.cold_start.planned == "none"
    assert config.cold_start.learner.muon_lr == 0.02


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").write_text("")
    with pytest.raises(UserError, match=r"did you mean .*quickstart\.toml"):
        configuration.load(tmp_path / "quikstart.toml")
    (tmp_path / "broken.toml").write_text("[run\n")
    with pytest.raises(UserError, match="not valid TOML"):
        configuration.load(tmp_path / "broken.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.toml")), ids=lambda p: p.name)
def test_the_configurations_that_ship_are_valid(path: Path) -> None:
    for _, tree in expand(configuration.read(path)):
        validate(tree)


def test_a_component_of_a_strangers_module_has_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the run, named by its quoted spec; its own annotations judge its options."""
    (tmp_path / "mine_for_config.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Scaled:\n    scale: float = 1.0\n"
        "    def __call__(self, tokens):\n        return -self.scale * tokens.advantage * tokens.logprob, {}\n"
    )
    monkeypatch.chdir(tmp_path)
    spec = "mine_for_config:Scaled"
    config = validate(assign({}, [f"learner.loss={spec}", f"loss.'{spec}'.scale=0.25"]))
    assert config.loss == {spec: {"scale": 0.25}}
    assert config.completed().loss == {spec: {"scale": 0.25}}
    assert validate(assign({}, [f"learner.loss={spec}"])).completed().loss == {spec: {"scale": 1.0}}
    assert "has no option 'scal'; did you mean 'scale'" in refusal(f'loss."{spec}".scal=1')
    assert "'scale' cannot be 'x'" in refusal(f'loss."{spec}".scale="x"')


def test_the_folder_keeps_every_option_of_what_it_used(tmp_path: Path) -> None:
    config = validate(assign({}, ["algorithm.aspo.k=0.25", "learner.loss=gspo", "loss.kl_cov.kl=2.0"])).completed()
    assert config.algorithm.options["aspo"] == {
        "delta": -2.0,
        "k": 0.25,
        "signal": "first_call",
        "eligible": "code",
        "compare": "batch",
        "correct_from": 0.5,
    }
    assert config.loss == {"gspo": {"clip_low": 3e-4, "clip_high": 4e-4}, "kl_cov": {"kl": 2.0}}
    place = tmp_path / "config.toml"
    place.write_text(config.to_toml())
    assert configuration.load(place) == config
    assert config.completed() == config
    assert config.hash() == configuration.load(place).hash()


def test_another_option_of_a_component_is_another_run() -> None:
    base = Config().completed().hash()
    settings = [
        "algorithm.aspo.k=0.25",
        "algorithm.tracker.window=7",
        "loss.ppo_clip.clip_low=0.1",
        "algorithm.stages=[]",
    ]
    assert all(validate(assign({}, [s])).completed().hash() != base for s in settings)
    assert validate(assign({}, ["algorithm.aspo.k=0.7"])).completed().hash() == base  # the default, written out


@pytest.mark.parametrize("engine", ["chat", "scripted"])
def test_what_has_no_weights_is_not_trained(engine: str) -> None:
    with pytest.raises(UserError, match="it can be evaluated, not trained"):
        configuration.load(ROOT / "configs" / "recipes" / "quickstart.toml", [f"run.engine='{engine}'"])


@pytest.mark.parametrize("settings", [["rollout.mode=sync"], ["learner.tis_cap=2.0"]])
def test_a_loss_that_would_do_nothing_is_refused(settings: list[str]) -> None:
    """KL-Cov's penalty has no gradient on the policy that sampled; with several steps, or stale tokens, it has."""
    with pytest.raises(UserError, match="num_mini_batches to 2 or more"):
        validate(assign({}, ["learner.loss=kl_cov", *settings]))
    validate(assign({}, ["learner.loss=kl_cov", "learner.num_mini_batches=2", *settings]))
    validate(assign({}, ["learner.loss=kl_cov"]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["rollout.strategy=window", "rollout.window={full=0.5, after=0.75}"], "0 < after <= full <= 1"),
        (["rollout.window.pinned=-1"], "greater than or equal to 0"),
        (["rollout.strategy=arpo", "algorithm={group_size=2, stages=['prefix_once', 'aspo']}"], "name it last"),
        (["rollout.strategy=arpo", "algorithm={group_size=2, advantage='passk'}"], "answers that are independent"),
        (["cold_start.learner.imitation.weight=0.3"], "set learner.imitation, without cold_start"),
        (["cold_start.learner={entropy_coef=0.1, entropy_band=[0.8, 1.2]}"], "set learner.entropy_band"),
    ],
)
def test_what_would_be_passed_over_or_fail_later_is_refused(settings: list[str], words: str) -> None:
    assert words in refusal(*settings)


def test_what_the_second_phase_refuses_is_said_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ["rollout.learn_in_parts=2", "algorithm.stages=[]"]
    with pytest.raises(UserError, match="SPO as it is set judges whole batches"):
        setup.refuse_learning(validate(assign({}, parts)))
    alone = [*parts, "algorithm.spo.scale=none"]
    setup.refuse_learning(validate(assign({}, alone)))
    with pytest.raises(UserError, match="loss clip_cov selects"):
        setup.refuse_learning(validate(assign({}, [*alone, "learner.loss=clip_cov"])))
    monkeypatch.setattr(low_memory, "find_spec", lambda name: None)
    setup.refuse_learning(validate({}))
    for phase in ("", "cold_start."):
        with pytest.raises(UserError, match=r"pip install 'solostream\[low-memory\]'"):
            setup.refuse_learning(validate(assign({}, [f"{phase}learner={{optimizer='adamw', moments='8bit'}}"])))


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({"turn_reward": {"code_passes": 0.1, "well_formed": {"weight": 0.05}}}, "1.6"),
        ({"turn_reward": "code_passes", "reward": {"correct": 0.75}}, "4.75"),
        ({"turn_reward": {"code_passes": 0.1}, "reward": {"correct": 0.6}}, None),
        ({"reward": {"correct": 0.5, "well_formed": 0.5}}, None),
    ],
)
def test_what_turns_are_paid_must_fit_the_range(options: dict, reach: str | None) -> None:
    """Said with the configuration, not by the first right answer behind a cold start."""
    given = {"env": {"max_turns": 4, "options": options}}
    if reach is None:
        validate(given)
    else:
        with pytest.raises(UserError) as caught:
            validate(given)
        assert str(caught.value).endswith(f"set algorithm.reward_range = [0.0, {reach}], what can be reached")
    validate({**given, "algorithm": {"reward_range": [0.0, 1.2]}})  # who sets a range is believed
