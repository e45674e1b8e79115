"""A symbolic calculator and checker. SymPy's parser evaluates Python: it runs in the sandbox, never in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solostream.envs.workspace import Workspace
from solostream.sandbox.types import Execution

# The values are passed as literals (repr), so that no expression can end the string that holds it.
_PROGRAM = """
import sympy
from sympy.parsing import sympy_parser as parser
rules = (*parser.standard_transformations, parser.convert_xor, parser.implicit_multiplication_application)
def _read(text):
    return parser.parse_expr(text, transformations=rules)
left, right = {left!r}, {right!r}
if right is None:
    value = sympy.simplify(_read(left))
    print(value if value.is_Integer or not value.is_number else f"{{value}} = {{sympy.N(value, 15)}}")
else:
    gap = sympy.simplify(_read(left) - _read(right))
    print("equal" if gap == 0 else f"not equal: the difference is {{gap}}")
"""


class Calculator:
    """Simplify an expression, or check that it equals another one."""

    name = "calculator"
    description = (
        "Simplify a mathematical expression exactly (SymPy syntax, ^ is a power), or check that it equals another."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "expression": {"type": "string", "description": "for example: integrate(x^2, (x, 0, 3)) or sqrt(8) + 1/3"},
            "equals": {"type": "string", "description": "optional: the expression to compare with"},
        },
        "required": ["expression"],
    }

    async def __call__(self, arguments: Mapping[str, Any], workspace: Workspace) -> Execution:
        """Runs in an interpreter of its own: it neither sees nor changes what the Python tool defined."""
        program = _PROGRAM.format(left=str(arguments["expression"]), right=arguments.get("equals"))
        return await workspace.run_fresh(program)
