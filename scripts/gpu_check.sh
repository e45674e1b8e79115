#!/usr/bin/env bash
# What only a machine with a GPU can show, in about eight minutes: the device-marked tests, benchmarks/gpu.py, and the
# first steps of the quickstart on the device. Needs the packages of `pip install -e '.[train]' pytest pytest-asyncio pytest-timeout`.
# usage: scripts/gpu_check.sh [FOLDER]   (where logs and the run's summary go; default: build/gpu)
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
failed=0
timeout 120 "$python" -m pytest -q -m gpu tests/training/learner/test_gpu.py 2>&1 | tee "$out/tests.log" || failed=1
timeout 200 "$python" benchmarks/gpu.py 2>&1 | tee "$out/gpu.jsonl" || failed=1
timeout 240 "$python" -m solostream train quickstart --name gpu --set run.steps=8 --set "run.root=$out/runs" \
    --set model.device=cuda --set data.test=50 2>&1 |
    tee "$out/quickstart.log" || failed=1
cp "$out/runs/gpu/summary.json" "$out/summary.json" 2>/dev/null || failed=1
exit $failed
