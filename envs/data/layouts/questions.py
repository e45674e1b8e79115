"""Rows of a question and an answer: GSM8K's (the answer stands after ####), reasoning-gym's (with metadata), plain."""

from collections.abc import Mapping
from typing import Any


class Gsm8k:
    """Rows of GSM8K (arXiv 2110.14168): the answer follows `####` at the end of a worked solution."""

    says = "question, the answer from what follows #### in answer"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A text `question` and an `answer` with `####`."""
        return isinstance(row.get("question"), str) and "####" in str(row.get("answer"))

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The question, and what follows `####`. Raises ValueError where the mark is missing."""
        worked = row.get("answer")
        if worked is not None and "####" not in str(worked):
            raise ValueError("'answer' holds no '####'")
        answer = None if worked is None else str(worked).rpartition("####")[2]
        return {"prompt": row.get("question"), "answer": answer, "id": row.get("id")}


class ReasoningGym:
    """Rows of Reasoning Gym (arXiv 2505.24760), whose `metadata` names the generator."""

    says = "question, answer, the source from metadata.source_dataset"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A text `question`, an `answer` and a mapping `metadata`."""
        return isinstance(row.get("question"), str) and "answer" in row and isinstance(row.get("metadata"), Mapping)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Question and answer as they are; the source is the name of the generator."""
        source = (row.get("metadata") or {}).get("source_dataset")
        return {"prompt": row.get("question"), "answer": row.get("answer"), "source": source}


class Question:
    """Rows with a `question` and its `answer`, and nothing to work out."""

    says = "question, answer"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A text `question` and an `answer`; forms that say more are asked before this one."""
        return isinstance(row.get("question"), str) and "answer" in row

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Question, answer and id as they are."""
        return {"prompt": row.get("question"), "answer": row.get("answer"), "id": row.get("id")}
