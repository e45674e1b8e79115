"""What runs inside vLLM's workers: reading new weights from a file, not outliving the engine's owner.

Named by `worker_extension_cls`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Reload:
    """Mixed into vLLM's worker class by vLLM."""

    model_runner: Any

    def end_with(self, owner: int) -> None:
        """Die when the process `owner` does, however it dies (Linux; one in between must die with it first)."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                os._exit(1)  # it died before the line above

    def load_from(self, path: str) -> None:
        """Load the safetensors file `path` (names as in the Hugging Face state dict) over the model."""
        from safetensors.torch import load_file

        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))
