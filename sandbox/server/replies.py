"""JSON in which lone surrogates and NUL travel as escapes."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse


class AsciiJSON(JSONResponse):
    """Python's own output may hold what UTF-8 cannot; ASCII with escapes can hold everything."""

    def render(self, content: Any) -> bytes:
        """JSON with escapes for all that is not ASCII: lone surrogates, too, survive the way."""
        return json.dumps(content).encode()
