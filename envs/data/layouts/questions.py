"""Rows of a question and an answer: GSM8K's (the answer stands after ####), reasoning-gym's (with metadata), plain."""

from collections.abc import Mapping
from typing import Any


class Gsm8k:
    says = "question, the answer from what follows #### in answer"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("question"), str) and "####" in str(row.get("answer"))

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        worked = row.get("answer")
        if worked is not None and "####" not in str(worked):
            raise ValueError("'answer' holds no '####'")
        answer = None if worked is None else str(worked).rpartition("####")[2]
        return {"prompt": row.get("question"), "answer": answer, "id": row.get("id")}


class ReasoningGym:
    says = "question, answer, the source from metadata.source_dataset"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("question"), str) and "answer" in row and isinstance(row.get("metadata"), Mapping)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        source = (row.get("metadata") or {}).get("source_dataset")
        return {"prompt": row.get("question"), "answer": row.get("answer"), "source": source}


class Question:
    says = "question, answer"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("question"), str) and "answer" in row

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"prompt": row.get("question"), "answer": row.get("answer"), "id": row.get("id")}
