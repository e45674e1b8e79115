"""verl's parquet rows: `prompt` as messages, the answer in `reward_model.ground_truth`, the source in `data_source`."""

from collections.abc import Mapping
from typing import Any

from solostream.envs.data.layouts import is_chat, question


class Verl:
    """verl's parquet rows: `prompt` is a list of messages, the answer is in `reward_model`."""

    says = "the user's message of prompt, the answer from reward_model.ground_truth"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A list of messages under `prompt`, and `reward_model.ground_truth`."""
        return is_chat(row.get("prompt")) and "ground_truth" in (row.get("reward_model") or {})

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The user's one message, the ground truth, `data_source`. Raises ValueError for several turns."""
        return {
            "prompt": question(row["prompt"], "prompt"),
            "answer": row["reward_model"]["ground_truth"],
            "source": row.get("data_source"),
        }
