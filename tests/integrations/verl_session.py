"""What the tests of our verl adapter look at, made by verl's own classes; prints JSON. verl's folder is on the path.

Two batches of five episodes go the way of verl's agent loops (made by hydra from its registry) and then through the
`compute_advantage` of its trainer. Its inference servers need a GPU: a script stands in their place.
"""

import asyncio
import json
import sys

import hydra
import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap, _agent_loop_registry
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

import solostream.integrations.verl as ours
from solostream.errors import UserError
from solostream.training.run.model import build_tokenizer

PROMPT, RESPONSE = 400, 220
CALL = "```python\nprint(6 * 7)\n```\n"
SAID = [  # of each episode: its turns, the last one closed by the token that ends a turn
    [f"At once. {CALL}", "So \\boxed{42}"],
    ["I guess \\boxed{41}"],
    [f"Let me think about it for quite a while before I call. {CALL}", "It says \\boxed{42}"],
    ["\\boxed{42}"],
    [CALL, "\\boxed{13}"],
]
TOKENIZER = build_tokenizer([*(text for turns in SAID for text in turns), "what is six times seven"], 400)


class Script:
    """`generate` of verl's LLMServerClient."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.asked: list[dict] = []
        self.steps = 0

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict) -> TokenOutput:
        self.asked.append({"request": request_id, "prompt": len(prompt_ids), **sampling_params})
        text = self.turns.pop(0)
        ids = TOKENIZER.encode(text) + ([] if self.turns else [TOKENIZER.eos_token_id])
        logprobs = [-0.25 - 0.001 * token for token in ids]
        return TokenOutput(
            token_ids=ids, log_probs=logprobs, stop_reason="completed", extra_fields={"global_steps": self.steps}
        )


def padded(rows: list[list[float]], width: int) -> torch.Tensor:
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.float32)


def loop(script: Script, folder: str):
    """Made as verl's AgentLoopWorker makes one; the section `book` as a YAML file of agent loops gives it."""
    rollout = {"prompt_length": PROMPT, "response_length": RESPONSE}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    entry = OmegaConf.create({**_agent_loop_registry["solostream"], "book": {"folder": folder, "stages": ["aspo"]}})
    return hydra.utils.instantiate(
        config=entry,
        trainer_config=DictConfigWrap(config=config),
        server_manager=script,
        tokenizer=TOKENIZER,
        processor=None,
        hf_model_type=None,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
        tools=ToolListWrap([]),
    )


async def played(script: Script, folder: str, batch: int) -> list[dict]:
    outputs = []
    for i, turns in enumerate(SAID):
        script.turns, script.steps = list(turns), batch
        row = {
            "raw_prompt": [{"role": "user", "content": f"what is six times seven ({i % 3})"}],
            "reward_model": {"ground_truth": "42"},
            "data_source": "here",
            "uid": f"{batch}-{i}",
            "session_id": 0,
            "global_steps": batch,
        }
        params = {"temperature": 0.7, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
        outputs.append((await loop(script, folder).run(params, **row)).as_dict())
    return outputs


def weighed(outputs: list[dict], uids: list[str]) -> DataProto:
    masks = padded([o["response_mask"].tolist() for o in outputs], RESPONSE)
    rewards = padded([o["rm_scores"].tolist() for o in outputs], RESPONSE)
    tensors = {"token_level_rewards": rewards, "response_mask": masks}
    data = DataProto.from_dict(tensors, non_tensors={"uid": np.array(uids, dtype=object)})
    return compute_advantage(data, "solostream", config={})


def main(folder: str) -> None:
    ray.init(
        num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False, object_store_memory=80 << 20
    )
    script, found = Script(), {"batches": []}
    for batch in range(2):
        outputs = asyncio.run(played(script, folder, batch))
        uids = [f"{batch}-{i}" for i in range(len(outputs))][::-1]  # verl may hand rows over in another order
        data = weighed(outputs[::-1], uids)
        columns = ("prompts", "responses", "response_mask", "rollout_log_probs", "rm_scores")
        found["batches"].append(
            {
                "advantages": data.batch["advantages"].tolist()[::-1],
                "rows": [{name: o[name].tolist() for name in columns} | {"extra": o["extra_fields"]} for o in outputs],
            }
        )
    found["asked"] = script.asked
    try:
        weighed(outputs, ["never"] * len(outputs))
    except ray.exceptions.RayTaskError as error:
        found["unknown"] = str(error.cause)
    try:
        asyncio.run(ours.VerlEngine(Silent(), {}, "a", 0).generate([1], ours.Sampling(4)))
    except UserError as error:
        found["silent"] = str(error)
    ray.shutdown()
    print(json.dumps(found))


class Silent:
    async def generate(self, **_: object) -> TokenOutput:
        return TokenOutput(token_ids=[5, 6], stop_reason="completed")


if __name__ == "__main__":
    main(sys.argv[1])
