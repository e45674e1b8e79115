r"""MATH's rows and their many relatives: `problem`, and `answer` or a `solution` that ends in \boxed{…}."""

from collections.abc import Mapping
from typing import Any

from solostream.envs.data.layouts import final


class Math:
    says = "problem, the answer from answer or the last \\boxed{} of solution"

    def matches(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("problem"), str) and ("answer" in row or "solution" in row)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = row["answer"] if row.get("answer") is not None else final(row.get("solution"))
        identity = row.get("unique_id", row.get("id"))
        return {"prompt": row.get("problem"), "answer": answer, "id": identity}
