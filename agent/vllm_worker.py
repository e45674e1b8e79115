"""What runs inside vLLM's workers: reading new weights from a file. Named by `worker_extension_cls`."""

from __future__ import annotations

from typing import Any


class Reload:
    """Mixed into vLLM's worker class by vLLM."""

    model_runner: Any

    def load_from(self, path: str) -> None:
        """Load the safetensors file `path` (names as in the Hugging Face state dict) over the model."""
        from safetensors.torch import load_file

        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))
