#!/usr/bin/env bash
# What only a machine with a GPU can show: the device-marked tests, the parts of benchmarks/gpu.py, and the first steps
# of the quickstart on the device. Each part has a time limit of its own, so that one that hangs leaves the others.
# Needs the packages of `pip install -e '.[train,low-memory]' pytest pytest-asyncio pytest-timeout`.
# usage: scripts/gpu_check.sh [FOLDER [PART …]]   (FOLDER: logs and the run's summary, default build/gpu)
# parts: tests attention settings profile learner engine memory quickstart (default: all, about twelve minutes)
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
shift || true
parts=${*:-tests attention settings profile learner engine memory quickstart}
python=${PYTHON:-python3}
size=${SIZE:-0.5}
export PYTHONUNBUFFERED=1
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
failed=0

limited() { # SECONDS NAME COMMAND...
    local seconds=$1 name=$2 started=$SECONDS
    shift 2
    timeout "$seconds" "$@" 2>&1 | tee "$out/$name.log" || failed=1
    echo "# $name: $((SECONDS - started)) s"
}

for part in $parts; do
    case $part in
    tests)
        limited 150 tests "$python" -m pytest -q --tb=short -m gpu tests/training/learner/test_gpu.py
        ;;
    quickstart)
        limited 150 quickstart "$python" -m solostream train quickstart --name gpu --set run.steps=20 \
            --set "run.root=$out/runs" --set model.device=cuda --set data.test=50
        cp "$out/runs/gpu/summary.json" "$out/summary.json" 2>/dev/null || failed=1
        ;;
    *)
        limited 150 "$part" "$python" benchmarks/gpu.py --sizes "$size" --parts "$part"
        ;;
    esac
done
exit $failed
