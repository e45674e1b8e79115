r"""MATH's rows and their many relatives: `problem`, and `answer` or a `solution` that ends in \boxed{…}."""

from collections.abc import Mapping
from typing import Any

from solostream.envs.data.layouts import final


class Math:
    """Rows of MATH, AIME and the like: `problem`, and `answer` or a worked `solution` with the answer in a box."""

    says = "problem, the answer from answer or the last \\boxed{} of solution"

    def matches(self, row: Mapping[str, Any]) -> bool:
        """A text `problem`, and an answer or a solution."""
        return isinstance(row.get("problem"), str) and ("answer" in row or "solution" in row)

    def fields(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer, else the last box of the solution. Raises ValueError where neither is there."""
        answer = row["answer"] if row.get("answer") is not None else final(row.get("solution"))
        identity = row.get("unique_id", row.get("id"))
        return {"prompt": row.get("problem"), "answer": answer, "id": identity}
